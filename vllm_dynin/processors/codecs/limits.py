"""Limits on media that come from outside, and the one way to open such a source.

Every limit is checked before the work it bounds: bytes before parsing, pixels before decoding,
frames and seconds while counting. Images, videos and audio share this one table.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO


class MediaError(ValueError):
    """The medium cannot be used: broken, unsupported, or over a limit."""


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What one image, video or recording may cost. Exactly at a limit is allowed.

    Args:
        max_bytes: size of the encoded source, in bytes.
        max_pixels: width × height of an image as it is handed on; larger ones are reduced.
        max_source_pixels: width × height of an image in its file.
        max_aspect_ratio: longer side ÷ shorter side of an image; bounds the intermediate image of
            a resize by the shorter side.
        max_frame_pixels: width × height of a video frame (several live in the decoder at once).
        max_frames: frames in a video, whether sampled or not (all are decoded to find them).
        max_seconds: duration of a video or a recording.
        max_decode_seconds: processor time that decoding one medium may take.
        max_decode_bytes: memory that decoding one medium may take.
        max_channels: audio channels.
        max_sample_rate: audio samples per second and channel.

    Raises:
        ValueError: a limit is not positive.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = 36_000_000  # an 8K frame, or 6000×6000
    max_source_pixels: int = 225_000_000  # a phone's main camera has up to 16,384×12,288
    max_aspect_ratio: float = 100.0
    max_frame_pixels: int = 9_000_000  # a 4K frame
    max_frames: int = 36_000  # ten minutes at 60 per second
    max_seconds: float = 600.0
    max_decode_seconds: int = 120
    max_decode_bytes: int = 2**30
    max_channels: int = 32
    max_sample_rate: int = 768_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name}={value} must be positive")

    def check(self, name: str, value: float, what: str) -> None:
        """Compare `value` with the limit called `name`; `what` says in words what is measured.

        Raises:
            MediaError: the value is over the limit (or not a number).
        """
        limit = getattr(self, name)
        if not value <= limit:
            raise MediaError(
                f"{what} is {value:g}, over the limit {name}={limit:g}; "
                "send a smaller one or raise the limit in MediaLimits"
            )


DEFAULT_LIMITS = MediaLimits()


@contextmanager
def open_source(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> Iterator[BinaryIO]:
    """Open a media source as a seekable binary file at its start, its size checked first.

    A decoder is always given this file object, never a name: libraries that take names also take
    URLs, pipes and playlists. A file object of the caller is rewound and left open.

    Args:
        source: path of a regular file, the file's bytes, or a seekable binary file object.
        limits: `max_bytes` is applied.

    Yields:
        A binary file object.

    Raises:
        MediaError: no such file, not a regular file, empty, over `max_bytes`, or not seekable.
        TypeError: the source is none of these.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        limits.check("max_bytes", memoryview(source).nbytes, "the size in bytes")
        stream: BinaryIO = io.BytesIO(source)
        is_ours = True
    elif isinstance(source, str | os.PathLike):
        stream = _open_regular_file(Path(source))
        is_ours = True
    elif hasattr(source, "read") and hasattr(source, "seek"):
        stream, is_ours = source, False
    else:
        raise TypeError(
            f"a media source must be a path, bytes or a binary file, not {type(source).__name__}"
        )
    try:
        try:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
        except (OSError, ValueError) as error:
            raise MediaError("the file object is not seekable; read it into bytes first") from error
        limits.check("max_bytes", size, "the size in bytes")
        if size == 0:
            raise MediaError("the media source is empty (0 bytes)")
        yield stream
    finally:
        if is_ours:
            stream.close()


def _open_regular_file(path: Path) -> BinaryIO:
    try:
        # Non-blocking, or opening a FIFO without a writer would hang before it can be refused.
        stream = open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK))  # noqa: SIM115
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise MediaError(
            f"cannot open {str(path)!r}: {error}; a media source is a local file, bytes or a "
            "binary file object (fetch URLs first)"
        ) from error
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise MediaError(f"{str(path)!r} is not a regular file")
    return stream
