"""Logits whose rows begin where a GPU reads whole vectors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

ALIGNMENT = 64
"""Columns: 128 bytes of bfloat16. The published text columns are 126,349, an odd number."""


def padded_logits(
    hidden_RD: Tensor, weight_VD: Tensor, ranges: Iterable[tuple[int, int]]
) -> Tensor:
    """`hidden @ weightᵀ` for some ranges of rows of the weight, side by side.

    Args:
        hidden_RD: any floating dtype.
        weight_VD: of the same dtype; takes no gradient.
        ranges: half-open, in the order of the columns.

    Returns:
        [R, K], a view of a tile whose rows are a multiple of `ALIGNMENT` columns long.
    """
    ranges = tuple(ranges)
    width = sum(stop - first for first, stop in ranges)
    tile = hidden_RD.new_empty(len(hidden_RD), -(-width // ALIGNMENT) * ALIGNMENT)
    column = 0
    for first, stop in ranges:
        torch.mm(hidden_RD, weight_VD[first:stop].T, out=tile[:, column : column + stop - first])
        column += stop - first
    return tile[:, :width]
