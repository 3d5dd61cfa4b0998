"""Video → a few evenly spaced RGB frames, in memory bounded by those frames.

A file is decoded by FFmpeg (through PyAV, which brings its own) in a process of its own, whose
memory and processor time are capped; see `media_worker`.

Source: Dynin-Omni (d6e3ca8) `validation/mmu_generate.py:_load_video_tokens`, which decodes all
frames into memory first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from vllm_dynin.processors.codecs import video_worker
from vllm_dynin.processors.codecs.base64_text import from_base64
from vllm_dynin.processors.codecs.frame_choice import by_number
from vllm_dynin.processors.codecs.image_io import ImageSource, open_image, resize_and_crop
from vllm_dynin.processors.codecs.limits import (
    DEFAULT_LIMITS,
    MediaError,
    MediaLimits,
    open_source,
)
from vllm_dynin.processors.codecs.media_worker import run_worker

VideoSource = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | npt.NDArray[np.uint8]
    | Sequence[ImageSource]
)

MAX_TAKEN_BYTES = 512 * 2**20
"""RGB bytes of all frames that are taken of one video, at the size that is wanted."""


@dataclass(frozen=True)
class OpenedVideo:
    """A video on its way to the model.

    Args:
        source: the file, or its frames.
        num_frames: how many are wanted; None: as many as the checkpoint has.
        frames: uint8 [T, H, W, 3], those that were taken of it; None: none yet.
    """

    source: VideoSource
    num_frames: int | None = None
    frames: npt.NDArray[np.uint8] | None = None

    def take(self, num_frames: int, side: int) -> list[Image.Image]:
        """Frames as `load_frames` gives them; taken again only where others are wanted.

        Args:
            num_frames: how many.
            side: pixels of the square result.

        Raises:
            MediaError: see `load_frames`.
        """
        if self.frames is not None and self.frames.shape == (num_frames, side, side, 3):
            return [Image.fromarray(frame) for frame in self.frames]
        return load_frames(self.source, num_frames, side)


def load_frames(
    source: VideoSource,
    num_frames: int,
    size: int | tuple[int, int],
    limits: MediaLimits = DEFAULT_LIMITS,
    choose: Literal["time", "number"] = "time",
) -> list[Image.Image]:
    """Take `num_frames` frames of a video, evenly spaced, the first and the last included.

    A video with fewer frames repeats them; a still picture is a video of one frame.
    NOTE: the original spaces frames by number. At a constant rate that is the same; where the rate
    varies it takes most of them from the busiest second.

    Args:
        source: a video or an animated picture as path, bytes or seekable binary file
            (docs/codecs.md has the formats); or the frames themselves: uint8 [T, H, W, 3], or a
            sequence of pictures as `open_image` takes them.
        num_frames: how many (5 at 336 pixels in the original's demo).
        size: pixels of the square result, or (height, width); see `image_io.resize_and_crop`.
        limits: bytes, frame size, frame count, duration, memory and processor time.
        choose: evenly by `time`, or by `number` as the original does. Frames that are given
            themselves have no times and are always taken by number.

    Returns:
        RGB images in temporal order, upright where the file says how it was held, transparency on
        white.

    Raises:
        MediaError: not a video, no frames, damaged, or over a limit.
        ValueError: num_frames or size is not positive.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if num_frames < 1 or height < 1 or width < 1:
        raise ValueError(f"num_frames={num_frames} and size={size} must be positive")
    limits.check("max_frames", num_frames, "the number of frames asked for")
    if (taken := 3 * num_frames * height * width) > MAX_TAKEN_BYTES:
        raise MediaError(
            f"{num_frames} frames of {width}×{height} pixels are {taken} bytes, over the limit "
            f"{MAX_TAKEN_BYTES}; ask for fewer frames"
        )
    if isinstance(source, np.ndarray) or _is_sequence(source):
        frames: Sequence[Any] = source  # type: ignore[assignment]
        limits.check("max_frames", len(frames), "the number of frames")
        chosen = by_number(len(frames), num_frames)
        kept = {
            index: resize_and_crop(open_image(frames[index], limits), height, width)
            for index in dict.fromkeys(chosen)
        }
        return [kept[index] for index in chosen]
    task = {"num_frames": num_frames, "size": (height, width), "choose": choose}
    with open_source(source, limits) as stream:  # type: ignore[arg-type]
        raw = run_worker(video_worker.__name__, stream, task, limits, "video")
    array = np.frombuffer(raw, np.uint8).reshape(num_frames, height, width, 3)
    return [Image.fromarray(frame) for frame in array]


def _is_sequence(source: object) -> bool:
    return isinstance(source, Sequence) and not isinstance(
        source, str | bytes | bytearray | memoryview
    )


def frames_from_base64(text: str, limits: MediaLimits = DEFAULT_LIMITS) -> list[bytes]:
    """The pictures of a video that is written as a list: base64, commas between the frames.

    Args:
        text: what stands behind `data:video/jpeg;base64,`.
        limits: frames, and bytes of all of them together.

    Returns:
        The files, none of them opened yet.

    Raises:
        MediaError: an empty or damaged frame, too many frames, or too many bytes.
    """
    limits.check("max_frames", text.count(",") + 1, "the number of frames")
    limits.check("max_bytes", len(text) * 3 // 4, "the size in bytes")
    frames = []
    for number, part in enumerate(text.split(",")):
        try:
            frames.append(from_base64(part, limits))
        except MediaError as error:
            raise MediaError(f"frame {number} of the video: {error}") from error
    return frames
