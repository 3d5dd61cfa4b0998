"""PNG files of every colour type and depth, written by hand: Pillow writes few of them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
          (1, 0, 2, 1))  # fmt: skip


def chunk(kind: bytes, payload: bytes) -> bytes:
    """A chunk with its check sum."""
    return (
        struct.pack(">I", len(payload)) + kind + payload
        + struct.pack(">I", zlib.crc32(kind + payload))
    )  # fmt: skip


def png(
    samples: NDArray[np.integer],
    kind: int,
    depth: int = 8,
    *,
    is_interlaced: bool = False,
    notes: bytes = b"",
    num_parts: int = 1,
) -> bytes:
    """A file.

    Args:
        samples: [H, W, channels] in 0 .. 2^depth - 1.
        kind: colour type.
        depth: bits a sample.
        is_interlaced: Adam7.
        notes: chunks before the picture (palette, transparency, …).
        num_parts: chunks that the picture is spread over.
    """
    height, width, _ = samples.shape
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, int(is_interlaced))
    passes = _ADAM7 if is_interlaced else ((0, 0, 1, 1),)
    rows = b"".join(
        row for top, left, down, across in passes
        for row in _rows(samples[top::down, left::across], depth)
    )  # fmt: skip
    data = zlib.compress(rows)
    step = -(-len(data) // num_parts)
    parts = [chunk(b"IDAT", data[at : at + step]) for at in range(0, len(data), step)]
    picture = notes + b"".join(parts) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + picture


def _rows(samples: NDArray[np.integer], depth: int) -> Iterator[bytes]:
    if not samples.size:
        return
    for row in samples.reshape(len(samples), -1):
        if depth == 16:
            data = row.astype(">u2").tobytes()
        elif depth == 8:
            data = row.astype(np.uint8).tobytes()
        else:
            bits = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, -depth:]
            data = np.packbits(bits.reshape(-1)).tobytes()
        yield b"\0" + data
