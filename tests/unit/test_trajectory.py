"""An answer as it filled in: canvases, text, and the frames of an image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vllm_dynin.trajectory import Trajectory, write_gif

MASK = 99


def trajectory(*steps, first=1):
    ids = tuple(range(first, first + len(steps)))
    return Trajectory(token_ids=ids, steps=steps, mask_id=MASK)


def test_canvas_after_each_step() -> None:
    path = trajectory(2, 0, 1)
    assert path.num_steps == 2
    assert [path.canvas(step) for step in range(3)] == [[MASK, 2, MASK], [MASK, 2, 3], [1, 2, 3]]


def test_a_token_that_was_never_decided_stays_masked() -> None:
    """-1: a request that was aborted."""
    assert trajectory(1, -1).canvas(1) == [1, MASK]


def test_text_decodes_runs_and_shows_a_blank_for_each_mask() -> None:
    path = trajectory(1, 2, 1, 1, first=65)

    def decode(ids):
        return "".join(map(chr, ids)).lower()

    assert [path.text(step, decode) for step in range(3)] == ["····", "a·cd", "abcd"]


def test_frames_uncover_the_patches_in_raster_order() -> None:
    image = Image.fromarray(np.full((4, 6, 3), 10, np.uint8))
    path = Trajectory(token_ids=(1, 2, 3, 4, 5, 6, 7), steps=(0, 2, 1, 1, 2, 1, 9), mask_id=MASK)
    frames = [np.asarray(frame)[::2, ::2, 0] == 10 for frame in path.image_frames(image, 2)]
    assert len(frames) == 3  # the text behind the image does not count
    assert frames[0].tolist() == [[True, False, False], [False, False, False]]
    assert frames[1].tolist() == [[True, False, True], [True, False, True]]
    assert frames[2].all()


def test_gif_holds_every_frame_enlarged() -> None:
    frames = [Image.new("RGB", (4, 3), (shade, 0, 0)) for shade in (0, 100, 200)]
    target = io.BytesIO()
    write_gif(frames, target, seconds=0.3, scale=5)
    found = Image.open(target)
    assert (found.size, found.n_frames) == ((20, 15), 3)
    durations = []
    for index in range(found.n_frames):
        found.seek(index)
        durations.append(found.info["duration"])
    assert durations == [100, 100, 1600]


def test_gif_without_frames() -> None:
    with pytest.raises(ValueError, match="no frames"):
        write_gif([], io.BytesIO())
