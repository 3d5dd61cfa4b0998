"""Rows of logits are looked at a tile at a time, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.confidence import Proposals
from vllm_dynin.sampling.logprobs import RowLogprobs, row_logprobs
from vllm_dynin.sampling.noise import SlotDraws, StepDraws

LogitRows = Callable[[int, int], Tensor]
"""`rows(first, stop)`: guided logits [stop - first, K] of those of the wanted rows."""

Propose = Callable[[Tensor, SlotDraws | None], Proposals]
"""`propose(logits_RK, draws)`: a column per row and its confidence; None draws nothing."""

TILE_ELEMENTS = 1 << 21
"""Logits looked at together. Bounds memory; no draw depends on it."""


def tile_height(width: int) -> int:
    """Rows of a tile whose rows have so many columns."""
    return max(1, TILE_ELEMENTS // width)


def row_tiles(num_rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Cut rows into tiles: `(first row, row behind the last)`.

    Args:
        num_rows: rows of logits.
        width: columns of a row.
    """
    height = tile_height(width)
    for first in range(0, num_rows, height):
        yield first, min(first + height, num_rows)


def propose_in_tiles(
    slots: Tensor,
    logits: LogitRows,
    columns: Columns,
    *,
    propose: Propose,
    draws: StepDraws | None,
    logprobs: RowLogprobs | None,
    start: int,
) -> Proposals:
    """Propose for all rows, a tile of rows at a time.

    Args:
        slots: int64 [R], slots of the canvas the rows belong to.
        logits: gives the guided logits of rows; called for one tile after another.
        columns: allowed ids.
        propose: how a row's proposal is made.
        draws: of this step; None where nothing is random.
        logprobs: where to keep the log-probabilities of the proposals, or None. A slot proposed
            for again is overwritten, so that the step that decided it stands.
        start: first slot of the region, row 0 of `logprobs`.
    """
    proposed, confidences = [], []
    for first, stop in row_tiles(slots.shape[0], columns.width):
        part = columns.forbid_excluded(logits(first, stop))
        found = propose(part, None if draws is None else draws.at(slots[first:stop]))
        proposed.append(found.column)
        confidences.append(found.confidence)
        if logprobs is not None:
            ids, num_top = columns.ids(part.device), logprobs.ids.shape[1] - 1
            details = row_logprobs(part, found.column, ids, num_top)
            rows = torch.arange(stop - first, device=part.device)
            logprobs.store(slots[first:stop] - start, details, rows)
    return Proposals(column=torch.cat(proposed), confidence=torch.cat(confidences))
