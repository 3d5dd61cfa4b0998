"""Rows of logits are looked at a tile at a time, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.confidence import Proposals
from vllm_dynin.sampling.logprobs import RowLogprobs, row_logprobs

LogitRows = Callable[[int, int], Tensor]
"""`rows(first, stop)`: guided logits [stop - first, K] of those of the wanted rows."""

GeneratorOf = Callable[[torch.device, int], torch.Generator | None]
"""`generator_of(device, tile)`: source of the draws of one tile of rows; None draws nothing."""

Propose = Callable[[Tensor, torch.Generator | None], Proposals]
"""`propose(logits_RK, generator)`: a column per row and its confidence."""

TILE_ELEMENTS = 1 << 21
"""Logits looked at together. Fixed, because each tile of rows has its own draws: a bound that
followed free memory would make a sample depend on the machine's load."""


def row_tiles(num_rows: int, width: int) -> Iterator[tuple[int, int, int]]:
    """Cut rows into tiles: `(index of the tile, first row, row behind the last)`.

    Args:
        num_rows: rows of logits.
        width: columns of a row.
    """
    height = max(1, TILE_ELEMENTS // width)
    for index, first in enumerate(range(0, num_rows, height)):
        yield index, first, min(first + height, num_rows)


def propose_in_tiles(
    slots: Tensor,
    logits: LogitRows,
    columns: Columns,
    *,
    propose: Propose,
    generator_of: GeneratorOf,
    logprobs: RowLogprobs | None,
    start: int,
) -> Proposals:
    """Propose for all rows, a tile of rows at a time.

    Args:
        slots: int64 [R], slots of the canvas the rows belong to.
        logits: gives the guided logits of rows; called for one tile after another.
        columns: allowed ids.
        propose: how a row's proposal is made.
        generator_of: source of the draws.
        logprobs: where to keep the log-probabilities of the proposals, or None. A slot proposed
            for again is overwritten, so that the step that decided it stands.
        start: first slot of the region, row 0 of `logprobs`.
    """
    proposed, confidences = [], []
    for tile, first, stop in row_tiles(slots.shape[0], columns.width):
        part = columns.forbid_excluded(logits(first, stop))
        found = propose(part, generator_of(part.device, tile))
        proposed.append(found.column)
        confidences.append(found.confidence)
        if logprobs is not None:
            ids, num_top = columns.ids(part.device), logprobs.ids.shape[1] - 1
            details = row_logprobs(part, found.column, ids, num_top)
            rows = torch.arange(stop - first, device=part.device)
            logprobs.store(slots[first:stop] - start, details, rows)
    return Proposals(column=torch.cat(proposed), confidence=torch.cat(confidences))
