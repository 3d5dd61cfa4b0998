"""Rows of logits are looked at a tile at a time, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator

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
