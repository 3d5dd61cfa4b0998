"""Ogg files that are more, or less, than one whole stream: found, and a cut end mended.

libsndfile reads the first of several streams and nothing of a page whose end is missing; neither
does FFmpeg. A page is up to a second of speech.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

_HEAD = 27
_FIRST = 2
"""Flag of the first page of a stream."""


@dataclass(frozen=True)
class OggLayout:
    """What there is of an Ogg file.

    Args:
        is_plain: one stream, from its first page to the end of its last one.
        cut_page: byte at which a page begins whose end is missing; None where there is none.
    """

    is_plain: bool
    cut_page: int | None


def ogg_layout(stream: BinaryIO) -> OggLayout:
    """Walk over the pages of a file; its position is lost."""
    size = stream.seek(0, io.SEEK_END)
    position, streams = 0, 0
    while position < size:
        stream.seek(position)
        head = stream.read(_HEAD)
        if not head.startswith(b"OggS"):
            return OggLayout(False, None)
        table = stream.read(head[26]) if len(head) == _HEAD else b""
        if len(head) < _HEAD or len(table) < head[26]:
            return OggLayout(False, position)
        streams += bool(head[5] & _FIRST)
        body = position + _HEAD + len(table)
        if body + sum(table) > size:
            return OggLayout(False, position)
        position = body + sum(table)
    return OggLayout(streams == 1, None)


def without_cut_page(stream: BinaryIO, cut_page: int) -> BinaryIO:
    """The file, ending with the last whole packet of a page that is cut off."""
    stream.seek(0)
    data = stream.read()
    page = data[cut_page:]
    table = page[_HEAD : _HEAD + page[26]] if len(page) > _HEAD else b""
    body = page[_HEAD + page[26] :] if table else b""
    length, packets, kept = 0, 0, 0  # kept: segments of whole packets, `length` bytes of them
    for number, segment in enumerate(table, 1):
        packets += segment
        if packets > len(body):
            break
        if segment < 255:
            length, kept = packets, number
    whole = data[:cut_page]
    if kept:
        head = page[:22] + bytes(4) + bytes([kept])  # without its checksum
        page = head + table[:kept] + body[:length]
        whole += page[:22] + struct.pack("<I", _checksum(page)) + page[26:]
    return io.BytesIO(whole) if whole else stream


def _checksum_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


def _checksum(page: bytes) -> int:
    """The CRC of RFC 3533, over a page with zeros where it belongs."""
    table, value = _checksum_table(), 0
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ table[(value >> 24) ^ byte]
    return value
