"""Video files with a known content: a digit that moves, encoded in many ways."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

from vllm_dynin.training_ext.tiny import digits
from vllm_dynin.training_ext.tiny.words import DIGIT_WORDS


@dataclass(frozen=True)
class Film:
    """What is to be seen: `digits.CLIP_FRAMES` frames, one after the other.

    Args:
        index: of the digit.
        direction: where it moves.
    """

    index: int
    direction: digits.Direction

    @property
    def answer(self) -> str:
        """What `dynin-tiny` says of it."""
        return f"{DIGIT_WORDS[digits.label(self.index)]} moving {self.direction}"

    def frames(self, side: int = 240) -> list[Image.Image]:
        """RGB frames, enlarged without smoothing where the side is a multiple of 48."""
        small = digits.clip(digits.image(self.index, digits.CLIP_SIDE), self.direction)
        return [frame.resize((side, side), Image.Resampling.NEAREST) for frame in small]


def padded(frames: Sequence[Image.Image], width: int, height: int) -> list[Image.Image]:
    """Frames in the middle of a wider or a higher picture."""
    result = []
    for frame in frames:
        canvas = Image.new("RGB", (width, height))
        canvas.paste(frame, ((width - frame.width) // 2, (height - frame.height) // 2))
        result.append(canvas)
    return result


@contextmanager
def same_scheduling() -> Iterator[None]:
    """Undo what SVT-AV1 does to the thread that opens it: with root's rights, it becomes real-time.

    And so does everything that is started from there; on a small machine nothing else runs then.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def encoded(
    frames: Sequence[Image.Image],
    container: str = "mp4",
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: Fraction | float = 25,
    *,
    times: Sequence[float] | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    has_sound: bool = False,
) -> bytes:
    """A file by FFmpeg.

    Args:
        frames: RGB, of one size.
        container: name of the muxer.
        codec: name of the encoder.
        pixels: its pixel format.
        rate: frames a second.
        times: when each frame appears, in seconds; by the rate if None.
        options: of the encoder.
        muxer: options of the container.
        has_sound: a silent track stands before the film.
    """
    rate = Fraction(rate).limit_denominator(1001)
    with (  # a file with a name, because some containers are opened again to be put together
        same_scheduling(),
        tempfile.NamedTemporaryFile() as target,
        av.open(target.name, "w", format=container, options=muxer or {}) as file,
    ):
        if has_sound:
            sound = file.add_stream("aac" if container != "webm" else "libopus", rate=48_000)
            sound.layout = "mono"
        track: Any = file.add_stream(codec, rate=rate, options=options or {})
        track.width, track.height = frames[0].size
        track.pix_fmt = pixels
        if times is not None:
            track.codec_context.time_base = Fraction(1, 1000)
        if has_sound:
            silence = np.zeros((1, 48_000 // 2), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate = 48_000
            for packet in (*sound.encode(frame), *sound.encode(None)):
                file.mux(packet)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_image(image)
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[number]), Fraction(1, 1000)
            for packet in track.encode(frame):
                file.mux(packet)
        for packet in track.encode(None):
            file.mux(packet)
        file.close()
        return target.read()


def animated(
    frames: Sequence[Image.Image], kind: str, durations: int | list[int] = 100, **options: Any
) -> bytes:
    """An animated picture by Pillow; durations in milliseconds."""
    stream = io.BytesIO()
    frames[0].save(
        stream, kind, save_all=True, append_images=frames[1:], duration=durations, **options
    )
    return stream.getvalue()


def still(frame: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture by Pillow."""
    stream = io.BytesIO()
    frame.save(stream, kind, **options)
    return stream.getvalue()
