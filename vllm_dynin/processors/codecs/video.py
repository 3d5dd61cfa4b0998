"""Video → a few evenly spaced RGB frames, in memory bounded by those frames.

A file is decoded by FFmpeg (through PyAV, which brings its own) in a process of its own, with its
memory and processor time capped: a file of a kilobyte can claim 400 million samples, for which
FFmpeg would fill about 14 GB, and a decoder's crash must not end a server. Starting it costs about
0.15 s of one core.

Source: Dynin-Omni (d6e3ca8) `validation/mmu_generate.py:_load_video_tokens`, which decodes all
frames into memory first.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from vllm_dynin.processors.codecs import video_worker
from vllm_dynin.processors.codecs.image_io import open_image, resize_and_crop
from vllm_dynin.processors.codecs.limits import (
    DEFAULT_LIMITS,
    MediaError,
    MediaLimits,
    open_source,
)

VideoSource = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | npt.NDArray[np.uint8]
    | Sequence[Image.Image | npt.NDArray[np.uint8]]
)

# Wall time allowed over processor time before a worker that waits for something is ended.
_WALL_TIME_FACTOR = 5
_MIN_WALL_SECONDS = 60  # a busy machine may keep a worker waiting


def load_frames(
    source: VideoSource,
    num_frames: int,
    size: int | tuple[int, int],
    limits: MediaLimits = DEFAULT_LIMITS,
) -> list[Image.Image]:
    """Take `num_frames` evenly spaced frames of a video, the first and the last included.

    Args:
        source: mp4, mov, mkv, webm, avi or gif as path, bytes or seekable binary file; or the
            frames themselves: uint8 [T, H, W, 3], or a sequence of PIL images or [H, W, 3] arrays.
        num_frames: how many (5 at 336 pixels in the original's demo).
        size: pixels of the square result, or (height, width); see `image_io.resize_and_crop`.
        limits: bytes, frame size, frame count, duration, memory and processor time.

    Returns:
        RGB images in temporal order, upright where the file says how it was held.

    Raises:
        MediaError: not a video, no frames or too few, damaged, or over a limit.
        ValueError: num_frames or size is not positive.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if num_frames < 1 or height < 1 or width < 1:
        raise ValueError(f"num_frames={num_frames} and size={size} must be positive")
    limits.check("max_frames", num_frames, "the number of frames asked for")
    if isinstance(source, np.ndarray) or _is_sequence(source):
        frames: Sequence[Any] = source  # type: ignore[assignment]
        limits.check("max_frames", len(frames), "the number of frames")
        return [
            resize_and_crop(open_image(frames[index], limits), height, width)
            for index in video_worker.frame_indices(len(frames), num_frames)
        ]
    with (
        open_source(source, limits) as stream,  # type: ignore[arg-type]
        _with_descriptor(stream) as file,
    ):
        raw = _run_worker(file, num_frames, (height, width), limits)
    array = np.frombuffer(raw, np.uint8).reshape(num_frames, height, width, 3)
    return [Image.fromarray(frame) for frame in array]


def _is_sequence(source: object) -> bool:
    return isinstance(source, Sequence) and not isinstance(
        source, str | bytes | bytearray | memoryview
    )


@contextmanager
def _with_descriptor(stream: BinaryIO) -> Iterator[IO[bytes]]:
    """A file the operating system can hand to another process: the stream's own, or a copy."""
    # Only a plain file's descriptor is sure to give what its read() gives (gzip's does not).
    if isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO):
        yield stream
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy)
        copy.flush()
        yield copy


def _run_worker(
    file: IO[bytes], num_frames: int, size: tuple[int, int], limits: MediaLimits
) -> bytes:
    task = {"num_frames": num_frames, "size": size, "limits": asdict(limits)}
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OPENBLAS_NUM_THREADS": "1",  # NumPy's pool reserves memory for every core at import
        "MALLOC_ARENA_MAX": "2",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", video_worker.__name__, json.dumps(task)],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=max(_WALL_TIME_FACTOR * limits.max_decode_seconds, _MIN_WALL_SECONDS),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MediaError(f"decoding the video hung for {error.timeout} s and was ended") from error
    if done.returncode == video_worker.EXIT_REFUSED:
        raise MediaError(done.stdout.decode())
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise MediaError(
            f"decoding the video took over max_decode_seconds={limits.max_decode_seconds}; "
            "send a shorter or smaller one or raise the limit in MediaLimits"
        )
    if done.returncode != 0:
        raise MediaError(
            f"the video decoder failed on this file (exit status {done.returncode}); "
            "re-encode it, for example as mp4"
        )
    return done.stdout
