"""At which denoising step each slot of a canvas was decided: one number a slot.

A decided slot never changes, so the final ids and these numbers give the canvas as it stood after
every step.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNDECIDED = -1


class DecidedSteps:
    """Record of one request. Step 0 is what was known before; denoising steps count from 1."""

    def __init__(self) -> None:
        self.num_steps = 0
        self._steps: Tensor | None = None
        self._ids: Tensor | None = None

    def begin(self, ids: Tensor, mask_id: int) -> None:
        """Start with a canvas, or start over with one that was preempted.

        Args:
            ids: int64 [N] slots; those of a preempted request that were given out are in it, and
                keep their step.
            mask_id: what an undecided slot holds.
        """
        known = torch.zeros_like(ids, dtype=torch.int16) if self._steps is None else self._steps
        self._steps = torch.where(ids == mask_id, UNDECIDED, known).to(torch.int16)
        self._ids = ids

    def record(self, ids: Tensor, mask_id: int) -> None:
        """Note what one denoising step decided; without a device sync.

        Args:
            ids: int64 [N] slots after the step.
            mask_id: as for `begin`.
        """
        assert self._steps is not None
        self.num_steps += 1
        is_new = (ids != mask_id) & (self._steps == UNDECIDED)
        self._steps.masked_fill_(is_new, self.num_steps)
        self._ids = ids

    def end(self) -> None:
        """Keep a copy of the canvas: its memory is about to be another request's."""
        if self._ids is not None:
            self._ids = self._ids.clone()

    def steps(self) -> list[int]:
        """The step of each slot, `UNDECIDED` where there was none."""
        return [] if self._steps is None else self._steps.tolist()

    def ids(self) -> list[int]:
        """The canvas as it stands now, mask ids included."""
        return [] if self._ids is None else self._ids.tolist()
