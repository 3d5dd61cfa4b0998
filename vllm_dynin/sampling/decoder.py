"""One request's way through its canvas: what both drivers call at each denoising step.

The driver asks which slots need logits (`wanted`), runs the model on the canvas as it stands
(`ids`, and `unconditional_ids` for the second stream), and hands the guided logits to `step`.
Slots below `num_committed` are final and can be given out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vllm_dynin.canvas import Canvas, Parity, Region
from vllm_dynin.sampling.block import BlockDecoder, BlockOptions
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.logprobs import RowLogprobs
from vllm_dynin.sampling.maskgit import MaskGitDecoder, MaskGitOptions
from vllm_dynin.sampling.speech import SpeechDecoder, SpeechOptions
from vllm_dynin.sampling.tiles import LogitRows

RegionOptions = BlockOptions | MaskGitOptions | SpeechOptions


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a driver needs for one request. Plain data: it is sent to the workers.

    Args:
        canvas: what is known and what is to be generated.
        options: how each region is decoded, in the order of the canvas's regions.
        guidance_scale: s of classifier-free guidance; above 0 exactly where the canvas has an
            unconditional stream.
    """

    canvas: Canvas
    options: tuple[RegionOptions, ...]
    guidance_scale: float = 0.0

    def __post_init__(self) -> None:
        assert len(self.options) == len(self.canvas.regions)
        assert (self.guidance_scale > 0) == (self.canvas.unconditional is not None)


class RegionDecoder(Protocol):
    """Progress of one region."""

    columns: Columns
    logprobs: RowLogprobs | None

    @property
    def num_committed(self) -> int:
        """Slots of the canvas, from the first on, that are final."""

    @property
    def finished(self) -> bool:
        """Whether all slots of the region are decided."""

    def wanted(self) -> Tensor:
        """int64 slots whose logits the next step needs."""

    def step(self, slots: Tensor, logits: LogitRows) -> None:
        """One denoising step with the logits of those slots."""


class CanvasDecoder:
    """Progress of one request.

    Args:
        plan: the request.
        device: where the canvas lives.
        committed: ids of the first slots, given out before the request was preempted.
        ids: int64 [N] on that device, where the canvas is to be; None takes memory of its own.
    """

    def __init__(
        self,
        plan: Plan,
        device: torch.device,
        committed: tuple[int, ...] = (),
        ids: Tensor | None = None,
    ) -> None:
        self.plan = plan
        slots = (*committed, *plan.canvas.slots[len(committed) :])
        self.ids = torch.tensor(slots, dtype=torch.int64, device=device)
        if ids is not None:
            self.ids = ids.copy_(self.ids)
        self._follows: Tensor | None = None
        if plan.canvas.unconditional is not None:
            follows = plan.canvas.unconditional.follows
            self._follows = torch.tensor(follows, dtype=torch.bool, device=device)
        self._num_resumed = len(committed)
        self._later = list(enumerate(plan.canvas.regions))[::-1]
        self._decoders: list[tuple[Region, RegionDecoder]] = []
        self._enter_next_region()

    @property
    def finished(self) -> bool:
        """Whether every region is done."""
        return not self._later and self._active.finished

    @property
    def num_committed(self) -> int:
        """Slots from the first on that are final."""
        return self._active.num_committed

    @property
    def columns(self) -> Columns:
        """Allowed ids of the slots that are wanted now."""
        return self._active.columns

    def wanted(self) -> Tensor:
        """int64 slots whose logits the next step needs, ascending; not empty."""
        return self._active.wanted()

    def unconditional_ids(self) -> Tensor:
        """int64 [N]: the canvas as the second stream sees it now."""
        assert self._follows is not None
        return torch.where(self._follows, self.ids, self.plan.canvas.mask_id)

    def step(self, slots: Tensor, logits: LogitRows) -> None:
        """One denoising step, given the guided logits of the wanted slots."""
        self._active.step(slots, logits)
        if self._active.finished and self._later:
            self._enter_next_region()

    def logprobs(self, first: int, stop: int) -> RowLogprobs | None:
        """Log-probabilities of slots `[first, stop)`, None where none were asked for.

        Slots that no step decided (pinned ones, and in reference parity masks that are left) are
        their own id with log-probability 0.
        """
        num_top = self.plan.options[0].num_logprobs
        if num_top is None:
            return None
        found = RowLogprobs.empty(stop - first, num_top, self.ids.device)
        found.ids[:] = self.ids[first:stop, None]
        for region, decoder in self._decoders:
            low, high = max(first, region.start), min(stop, region.stop)
            if low < high and decoder.logprobs is not None:
                slots = torch.arange(low, high, device=self.ids.device)
                proposed = decoder.logprobs.ids[slots - region.start, 0]
                slots = slots[proposed == self.ids[slots]]
                found.store(slots - first, decoder.logprobs, slots - region.start)
        return found

    def _enter_next_region(self) -> None:
        index, region = self._later.pop()
        while self._later and region.stop <= self._num_resumed:
            index, region = self._later.pop()
        decoder = self._region_decoder(index, region)
        self._decoders.append((region, decoder))
        self._active = decoder

    def _region_decoder(self, index: int, region: Region) -> RegionDecoder:
        options = self.plan.options[index]
        mask_id, columns = self.plan.canvas.mask_id, Columns(region.columns, region.excluded)
        place = (self.ids, region.start, region.stop)
        done = max(0, self._num_resumed - region.start)
        if isinstance(options, MaskGitOptions):
            return MaskGitDecoder(
                *place, mask_id=mask_id, columns=columns, options=options, region=index
            )
        if isinstance(options, SpeechOptions):
            return SpeechDecoder(
                *place, mask_id=mask_id, columns=columns, options=options, region=index, done=done
            )
        return BlockDecoder(
            *place,
            mask_id=mask_id,
            columns=columns,
            options=options,
            region=index,
            done=done,
            revisit=self.plan.canvas.parity is Parity.REFERENCE,
        )
