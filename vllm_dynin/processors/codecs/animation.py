"""Frames of an animated picture (GIF, APNG, WebP, AVIF), and a still one as a video of one frame.

Pillow reads them: FFmpeg does not know animated WebP, and drops what lies below transparency. For
the worker only.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import BinaryIO

from PIL import Image

from vllm_dynin.processors.codecs.image_decode import opened, shown
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits
from vllm_dynin.processors.codecs.video_file import Choice

_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF", "TIFF", "FLI")
_UNIT = Fraction(1, 1_000_000)
_LEAST_MILLISECONDS, _DEFAULT_MILLISECONDS = 11, 100
"""Frames that claim a hundredth of a second or less are shown for a tenth by all browsers."""


def picture_frames(
    stream: BinaryIO, choose: Choice, fit: Callable[[Image.Image], Image.Image], limits: MediaLimits
) -> list[Image.Image]:
    """The chosen frames of a picture file; arguments as of `video_file.read_frames`.

    Raises:
        MediaError: not a picture, damaged, or over a limit.
    """
    with opened(stream, limits) as image:
        if image.format not in _ANIMATED or not getattr(image, "is_animated", False):
            frame = fit(shown(image, limits))
            return [frame for _ in choose([0], _UNIT)]
        what = f"the pixel count of a {image.width}×{image.height} frame"
        limits.check("max_frame_pixels", image.width * image.height, what)
        numbers, ticks = _appearances(image, limits)
        chosen = [numbers[index] for index in choose(ticks, _UNIT)]
        kept = {}
        for number in sorted(set(chosen)):
            image.seek(number)
            kept[number] = fit(shown(image, limits))
        return [kept[number] for number in chosen]


def is_film(stream: BinaryIO) -> bool:
    """Whether JPEG follows JPEG: raw motion JPEG, not a phone's photo with more pictures (MPF)."""
    stream.seek(0)
    data = stream.read()
    return (
        data.startswith(b"\xff\xd8\xff")
        and b"\xff\xd9\xff\xd8\xff" in data
        and (b"MPF\0" not in data[:65536])
    )


def _appearances(image: Image.Image, limits: MediaLimits) -> tuple[list[int], list[int]]:
    """Numbers of the frames that are whole, and when each appears, in microseconds."""
    numbers: list[int] = []
    ticks: list[int] = []
    now = 0
    first = int(bool(getattr(image, "default_image", False)))  # of APNG: is not shown in the film
    for number in range(first, limits.max_frames + first + 1):
        limits.check("max_frames", len(numbers), "the number of frames (counting stopped there)")
        try:
            image.seek(number)
            image.load()
        except EOFError:
            break
        except MemoryError:
            raise
        except Exception as error:
            if not numbers:
                raise MediaError(
                    f"the picture is damaged ({type(error).__name__}: {error})"[:200]
                ) from error
            break  # cut off
        numbers.append(number)
        ticks.append(now)
        duration = image.info.get("duration") or 0
        if duration < _LEAST_MILLISECONDS:
            duration = _DEFAULT_MILLISECONDS
        now += round(1000 * duration)
        limits.check("max_seconds", now / 1e6, "the duration in seconds")
    return numbers, ticks
