"""From samples to batches: rows of one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_dynin.processors.templates import IGNORE, Sample


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of one length, before masking.

    Args:
        ids_BT: int64 clean ids.
        is_target_BT: bool, positions that may be hidden; everything else is condition.
        labels_BT: int64, the clean id where the loss may look, `IGNORE` elsewhere.
        is_visible_BT: bool keys that may be attended to; None where all may, which is faster.
        positions_BT: int64 position of each id; None where every row counts 0, 1, ….
    """

    ids_BT: Tensor
    is_target_BT: Tensor
    labels_BT: Tensor
    is_visible_BT: Tensor | None = None
    positions_BT: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.ids_BT.shape[0], self.ids_BT.shape[1]


def collate(samples: Sequence[Sample], *, keeps_padding: bool = False) -> Batch:
    """Put samples into one batch; shorter rows end in positions nothing attends to.

    As in serving, padding of a prompt that the model must not see has no row: the rows behind it
    keep the positions they would have. The released trainer lets every row see the filler at its
    end; here a row's loss does not depend on the length of its neighbours.

    Args:
        samples: at least one.
        keeps_padding: give hidden padding rows all the same, as the released attention needs.
    """
    kept = [
        [i for i, is_seen in enumerate(s.is_visible) if is_seen or keeps_padding] for s in samples
    ]
    length = max(map(len, kept))

    def rows(values: Sequence[Sequence[int]], filler: int) -> list[list[int]]:
        return [
            [*(row[i] for i in seen), *[filler] * (length - len(seen))]
            for row, seen in zip(values, kept, strict=True)
        ]

    visible = torch.tensor(rows([s.is_visible for s in samples], 0), dtype=torch.bool)
    positions = torch.tensor(rows([range(len(s.ids)) for s in samples], 0))
    is_plain = all(seen == list(range(len(seen))) for seen in kept)
    return Batch(
        ids_BT=torch.tensor(rows([s.ids for s in samples], 0)),
        is_target_BT=torch.tensor(rows([s.is_target for s in samples], 0), dtype=torch.bool),
        labels_BT=torch.tensor(rows([s.labels for s in samples], IGNORE)),
        is_visible_BT=None if bool(visible.all()) else visible,
        positions_BT=None if is_plain else positions,
    )
