"""Take frames of one video file; run by `video.load_frames` in a process of its own.

    python -m vllm_dynin.processors.codecs.video_worker TASK < clip.mp4 > frames.raw

TASK is JSON: num_frames, size (height, width), choose (time or number), and what `media_worker`
adds. The output is uint8 [num_frames, height, width, 3].
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, BinaryIO

from PIL import Image

from vllm_dynin.processors.codecs.animation import is_film, picture_frames
from vllm_dynin.processors.codecs.frame_choice import by_number, by_time
from vllm_dynin.processors.codecs.image_io import resize_and_crop
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits
from vllm_dynin.processors.codecs.media_worker import serve
from vllm_dynin.processors.codecs.video_file import read_frames

_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"qoif")


def decode_frames(
    stream: BinaryIO,
    num_frames: int,
    size: tuple[int, int],
    limits: MediaLimits,
    choose: str = "time",
) -> list[Image.Image]:
    """The wanted frames at (height, width) = `size`; see `video.load_frames`.

    Raises:
        MediaError: not a video, no frames, damaged, or over a limit.
    """
    choice = partial(_choose, num_frames=num_frames, is_by_time=choose == "time")
    fit = partial(resize_and_crop, height=size[0], width=size[1])
    head = _head(stream)
    if _is_picture(head) and not is_film(stream):
        try:
            return picture_frames(stream, choice, fit, limits)
        except MediaError:
            if not head.startswith(b"GIF8"):
                raise  # FFmpeg knows how to go on in a damaged one
    return read_frames(stream, choice, fit, limits)


def _choose(
    ticks: Sequence[int], unit: Fraction, *, num_frames: int, is_by_time: bool
) -> list[int]:
    if is_by_time:
        return by_time(ticks, num_frames, unit)
    return by_number(len(ticks), num_frames)


def _head(stream: BinaryIO) -> bytes:
    stream.seek(0)
    return stream.read(16)


def _is_picture(head: bytes) -> bool:
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    is_avif = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis")
    return is_webp or is_avif or head.startswith(_PICTURES)


def _decode(stream: BinaryIO, task: dict[str, Any], limits: MediaLimits) -> Iterator[bytes]:
    height, width = task["size"]
    frames = decode_frames(stream, task["num_frames"], (height, width), limits, task["choose"])
    for frame in frames:
        yield frame.tobytes()


if __name__ == "__main__":
    sys.exit(serve(_decode))
