"""Two hundred videos, each made another way: the frames that are taken show what was filmed.

In this process, where a file costs a tenth of what it costs in a worker; the workers and the ways
in are tested on the same files in tests/engine/field.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from helpers.video_variety import MOVING, STILL, TOO_DAMAGED, damage, file_of, shorts

from vllm_dynin.processors.codecs.limits import DEFAULT_LIMITS, MediaError
from vllm_dynin.processors.codecs.video_worker import decode_frames

SIDE, TAKEN = 48, (0, 2, 4, 6, 8)
INCOMPLETE = {name for group in (damage, shorts) for name, _ in group()}
"""Not all frames are there: the motion is the same, over another distance."""


def grey(frames) -> np.ndarray:
    return np.stack([np.asarray(frame.convert("L"), dtype=np.float64) for frame in frames])


def middles(pictures: np.ndarray) -> np.ndarray:
    """[frames, 2]: where the light is, columns and rows."""
    light = np.where(pictures > 60, pictures, 0)
    total = light.sum((1, 2))
    across = (light.sum(1) * np.arange(SIDE)).sum(1) / total
    down = (light.sum(2) * np.arange(SIDE)).sum(1) / total
    return np.stack([across, down], -1)


@pytest.mark.parametrize("name", MOVING)
def test_films(name):
    film, _ = MOVING[name]
    taken = decode_frames(io.BytesIO(file_of(name)), len(TAKEN), (SIDE, SIDE), DEFAULT_LIMITS)
    seen, filmed = grey(taken), grey([film.frames(SIDE)[index] for index in TAKEN])
    if name not in INCOMPLETE:
        assert (
            np.abs(seen - filmed).mean() < 18
        )  # lossy codecs; another frame differs by 30 or more
        assert np.abs(middles(seen) - middles(filmed)).max() < 2
        return
    moved, expected = np.diff(middles(seen), axis=0), np.diff(middles(filmed), axis=0)
    axis = int(np.abs(expected).sum(0).argmax())
    sign = np.sign(expected[:, axis].sum())
    assert (sign * moved[:, axis] > -0.5).all() and sign * moved[:, axis].sum() > 8


@pytest.mark.parametrize("name", STILL)
def test_stills(name):
    film, _ = STILL[name]
    taken = decode_frames(io.BytesIO(file_of(name)), len(TAKEN), (SIDE, SIDE), DEFAULT_LIMITS)
    assert np.abs(grey(taken) - grey([film.frames(SIDE)[4]])).mean() < 18


@pytest.mark.parametrize("name", TOO_DAMAGED)
def test_refused(name):
    with pytest.raises(MediaError) as caught:
        decode_frames(io.BytesIO(file_of(name)), 5, (SIDE, SIDE), DEFAULT_LIMITS)
    assert len(str(caught.value)) > 20
