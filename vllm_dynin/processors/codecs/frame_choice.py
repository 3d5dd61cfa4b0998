"""Which frames of a video are taken."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from vllm_dynin.processors.codecs.limits import MediaError

_ROUNDING = Fraction(1, 1000)
"""Seconds by which a frame may come late: Matroska rounds times to milliseconds."""


def by_number(total: int, num_frames: int) -> list[int]:
    """Frames evenly spaced by number: floor(linspace(0, total - 1, num_frames)).

    Both of the original's methods, `uniform` and `uniform_sequential`, are this one. A single frame
    is the first. Where there are fewer than are wanted, frames repeat.

    Raises:
        MediaError: there is none.
    """
    if total < 1:
        raise MediaError("the video has 0 frames; send one that has a picture")
    return np.linspace(0, total - 1, num_frames).astype(int).tolist()


def by_time(ticks: Sequence[int], num_frames: int, seconds_per_tick: Fraction) -> list[int]:
    """Frames evenly spaced in time: what is on screen at num_frames moments, first to last frame.

    At a constant rate this is `by_number`. A single frame is the first.

    Args:
        ticks: when each frame appears, ascending.
        num_frames: how many to take.
        seconds_per_tick: the unit of the times.

    Returns:
        Indices, ascending; they repeat where there are too few frames.

    Raises:
        MediaError: there are no frames.
    """
    if len(ticks) < 2 or num_frames < 2:
        return by_number(len(ticks), num_frames)
    late = _ROUNDING / seconds_per_tick
    span, gaps = ticks[-1] - ticks[0], num_frames - 1
    moments = [ticks[0] + Fraction(span * number, gaps) for number in range(num_frames)]
    return [bisect_right(ticks, moment + late) - 1 for moment in moments]
