"""WAV files of plain samples, read without any decoder; and what their headers say wrongly.

A recorder that is cut off, or writes to a pipe, leaves 0, the largest number or the size of its
first buffer where the size of the samples belongs. Decoders take these for the truth. Here samples
go on to the end of the file, unless other chunks stand behind the size that the header gives.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vllm_dynin.processors.codecs.audio_blocks import (
    SEND,
    Block,
    check_rate,
    check_size,
    full_scale,
)
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits

_INTEGERS, _FLOATS, _EXTENSIBLE = 1, 3, 0xFFFE
_LARGEST = 2**32 - 1
_MAX_CHUNKS = 1_000  # in front of the samples, and behind them
_LEAST_LOST = 256  # bytes behind the samples; fewer are padding or an ID3v1 tag
# Behind the samples of some files, in no chunk.
_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICS", b"<?xml", b"<x:xmpmeta")


@dataclass(frozen=True, kw_only=True)
class WavFile:
    """Where the samples of a WAV file are, and what they are.

    Args:
        order: `<`, or `>` for a RIFX file.
        tag: what the samples are: 1 integers, 3 floats, others are coded.
        channels: how many.
        rate: Hz.
        width: bytes of one sample of one channel, if it is plain.
        bits: of them that are used.
        start: byte at which the samples begin.
        stop: byte behind the last one.
        size_at: byte at which the header gives their size.
        has_true_size: whether it gives the size that they have.
        next_file: byte at which another WAV file begins that was joined on; None where none was.
    """

    order: str
    tag: int
    channels: int
    rate: int
    width: int
    bits: int
    start: int
    stop: int
    size_at: int
    has_true_size: bool
    next_file: int | None

    @property
    def is_plain(self) -> bool:
        """Whether the samples are integers or floats that need no decoder."""
        if not self.channels or not self.width:
            return False
        if self.tag == _FLOATS:
            return self.width in (4, 8) and self.bits == 8 * self.width
        return self.tag == _INTEGERS and self.width <= 4 and -(-self.bits // 8) == self.width


def find_wav(stream: BinaryIO, at: int = 0) -> WavFile | None:
    """The WAV file that begins at a byte of a stream; None if none does.

    Args:
        stream: seekable; its position is lost.
        at: where.

    Raises:
        MediaError: it ends before its samples begin.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(at)
    head = stream.read(12)
    if head[:4] not in (b"RIFF", b"RIFX", b"RF64", b"BW64") or head[8:] != b"WAVE":
        return None
    order = ">" if head[:4] == b"RIFX" else "<"
    form, large, position = b"", 0, at + 12
    for _ in range(_MAX_CHUNKS):
        stream.seek(position)
        name, claimed = _chunk_head(stream.read(8), order)
        position += 8
        if name == b"data" and len(form) >= 16:
            size_at = position - 4
            if claimed == _LARGEST and large:
                claimed = large
            return _with_samples(stream, order, form, position, claimed, size_at, size)
        if len(name) < 4 or position > size:
            raise MediaError(f"the WAV file ends before its samples begin; {SEND}")
        content = stream.read(min(claimed, 40)) if name in (b"fmt ", b"ds64") else b""
        if name == b"fmt ":
            form = content
        elif name == b"ds64" and len(content) >= 16:
            large = int.from_bytes(content[8:16], "little")
        position += claimed
        if claimed % 2 and not _is_name(stream, position):  # the byte that makes it even
            position += 1
    return None


def _is_name(stream: BinaryIO, position: int) -> bool:
    stream.seek(position)
    name = stream.read(4)
    return len(name) == 4 and all(0x20 <= byte < 0x7F for byte in name)


def _chunk_head(head: bytes, order: str) -> tuple[bytes, int]:
    if len(head) < 8:
        return b"", 0
    return head[:4], struct.unpack(f"{order}I", head[4:])[0]


def _with_samples(
    stream: BinaryIO, order: str, form: bytes, start: int, claimed: int, size_at: int, size: int
) -> WavFile:
    tag, channels, rate, _, block, bits = struct.unpack(f"{order}HHIIHH", form[:16])
    if tag == _EXTENSIBLE and len(form) >= 26:
        tag = struct.unpack(f"{order}H", form[24:26])[0]
    stop, next_file = size, None
    least = _LEAST_LOST if claimed else 0
    for behind in (start + claimed, start + claimed + claimed % 2):
        if behind > size:
            break
        if (at := _what_follows(stream, order, behind, size, least)) is not None:
            stop, next_file = start + claimed, at if at < size else None
            break
    width = block // channels if channels and block % channels == 0 else 0
    return WavFile(
        order=order,
        tag=tag,
        channels=channels,
        rate=rate,
        width=width,
        bits=bits,
        start=start,
        stop=stop,
        size_at=size_at,
        has_true_size=stop - start == claimed,
        next_file=next_file,
    )


def _what_follows(stream: BinaryIO, order: str, position: int, size: int, least: int) -> int | None:
    """Where the next file begins behind the samples, or `size`; None if there are more samples.

    Fewer bytes than `least`, zeros and known tags are not taken for samples.
    """
    if size - position < least:
        return size
    for _ in range(_MAX_CHUNKS):
        stream.seek(position)
        head = stream.read(12)
        if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:] == b"WAVE":
            return position
        if len(head) < 8 or head.startswith(_TAGS):
            return size
        if least and not any(head) and _is_zero(stream):
            return size
        name, length = _chunk_head(head[:8], order)
        if not _is_name(stream, position) or name == b"data":
            return None
        position += 8 + length + length % 2
        if position > size:  # the last chunk may be cut off, but it must be one that there is
            return size if name in (b"LIST", b"bext", b"iXML", b"cue ", b"smpl", b"id3 ") else None
    return None


def _is_zero(stream: BinaryIO) -> bool:
    while data := stream.read(1 << 20):
        if any(data):
            return False
    return True


def wav_blocks(
    stream: BinaryIO, wav: WavFile | None, limits: MediaLimits, block_values: int
) -> Iterator[Block]:
    """The samples of a plain WAV file, and of those that are joined on to it.

    Args:
        stream: of the file.
        wav: what `find_wav` found in it.
        limits: of the recording.
        block_values: most values of one block.

    Yields:
        float32 [n, channels], full scale 1.0, and the rate.

    Raises:
        MediaError: over a limit, or a joined file has coded samples.
    """
    while wav is not None:
        if not wav.is_plain:
            raise MediaError(f"a WAV file of coded samples is joined on to a plain one; {SEND}")
        rate, frame = check_rate(wav.rate, limits), wav.channels * wav.width
        check_size((wav.stop - wav.start) // frame, wav.channels, rate, limits)
        step = max(block_values // wav.channels, 1) * frame
        for position in range(wav.start, wav.stop, step):
            stream.seek(position)
            data = stream.read(min(step, wav.stop - position))
            values = _values(data[: len(data) // frame * frame], wav)
            with np.errstate(over="ignore", invalid="ignore"):  # refused later
                samples = full_scale(values).astype(np.float32)
            yield samples.reshape(-1, wav.channels), rate
        wav = None if wav.next_file is None else find_wav(stream, wav.next_file)


def _values(data: bytes, wav: WavFile) -> NDArray[np.generic]:
    """Integers or floats of NumPy's own types."""
    if wav.tag == _FLOATS:
        return np.frombuffer(data, f"{wav.order}f{wav.width}")
    if wav.width == 1:
        return np.frombuffer(data, np.uint8)
    if wav.width == 3:  # the upper bytes of four
        bytes_of = np.zeros((len(data) // 3, 4), np.uint8)
        place = slice(1, 4) if wav.order == "<" else slice(0, 3)
        bytes_of[:, place] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return bytes_of.view(f"{wav.order}i4")[:, 0]
    return np.frombuffer(data, f"{wav.order}i{wav.width}")


def with_true_size(stream: BinaryIO, wav: WavFile) -> BinaryIO:
    """A WAV file of coded samples whose header gives the size that they have, for a decoder."""
    size = wav.stop - wav.start
    stream.seek(0)
    data = bytearray(stream.read())
    data[wav.size_at : wav.size_at + 4] = struct.pack(f"{wav.order}I", min(size, _LARGEST))
    data[4:8] = struct.pack(f"{wav.order}I", min(len(data) - 8, _LARGEST))
    return io.BytesIO(data)
