"""Known parts of an answer: which codes of an image, which units of a recording are generated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vllm_dynin.processors import infill
from vllm_dynin.tokens import Vocabulary

V = Vocabulary(num_text_pieces=256, num_image_codes=16, num_speech_units=12)


def mask_of(height, width, *boxes):
    mask = Image.new("L", (width, height), 0)
    for box in boxes:
        mask.paste(255, box)
    return mask


def test_a_code_is_generated_if_any_of_its_pixels_is_marked() -> None:
    mask = mask_of(8, 12, (4, 0, 5, 1), (8, 4, 12, 8))  # one pixel of code 1, all of code 5
    assert infill.marked_codes(mask, 4) == [False, True, False, False, False, True]


@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    patch=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_marks_agree_with_a_literal_reading(rows, columns, patch, seed) -> None:
    rng = np.random.default_rng(seed)
    array = (rng.random((rows * patch, columns * patch)) < 0.2) * np.uint8(255)
    array[0, 0] = 255
    expected = [
        any(array[row * patch + y, column * patch + x] for y in range(patch) for x in range(patch))
        for row in range(rows)
        for column in range(columns)
    ]
    assert infill.marked_codes(Image.fromarray(array), patch) == expected


def test_mask_follows_its_image_through_scaling_and_cropping() -> None:
    """The left half of a wide picture: the centre crop keeps the border in the middle."""
    image, mask = Image.new("RGB", (200, 100)), mask_of(100, 200, (0, 0, 100, 100))
    fitted = np.asarray(infill.fit_mask(mask, image, 16, 16)) > 127
    assert fitted[:, :8].all() and not fitted[:, 8:].any()


def test_mask_of_another_size() -> None:
    with pytest.raises(ValueError, match="mask is 4×4 pixels, its image 8×4"):
        infill.fit_mask(mask_of(4, 4), Image.new("RGB", (8, 4)), 8, 8)


def test_mask_that_marks_nothing() -> None:
    with pytest.raises(ValueError, match="marks nothing"):
        infill.marked_codes(mask_of(8, 8), 4)


def test_image_targets_pin_what_is_not_marked() -> None:
    targets = infill.image_targets([5, 6, 7], [False, True, False], V)
    assert targets == (V.image.start + 5, V.mask, V.image.start + 7)


@pytest.mark.parametrize(
    ("codes", "marks", "message"), [([1], [True, False], "1 codes but 2"), ([16], [False], "16 is")]
)
def test_bad_image_targets(codes, marks, message) -> None:
    with pytest.raises(ValueError, match=message):
        infill.image_targets(codes, marks, V)


def speech_targets(units, start, stop, num_units=None):
    return infill.speech_targets(
        units, start, stop, units_per_second=10, num_units=num_units, vocabulary=V
    )


def test_speech_span_by_time() -> None:
    """Ten units a second; repeats are dropped on both sides, and in counting the gap."""
    units = [1, 1, 2, 3, 3, 3, 4, 5, 5, 5]
    first = V.speech.start
    mask = V.mask
    expected = (first + 1, first + 2, mask, mask, first + 5, V.eoa)  # the gap held 3 3 3 4
    assert speech_targets(units, 0.3, 0.7) == expected
    assert speech_targets(units, 0.3, 0.7, num_units=5).count(mask) == 5


def test_speech_span_at_the_edges() -> None:
    units = [1, 2, 3, 4]
    assert speech_targets(units, 0, 0.4) == (V.mask,) * 4 + (V.eoa,)
    assert speech_targets(units, 0.2, 0.4)[:2] == (V.speech.start + 1, V.speech.start + 2)


def test_span_without_units() -> None:
    with pytest.raises(ValueError, match="num_units=0"):
        speech_targets([1, 2, 3, 4], 0.1, 0.3, num_units=0)


@pytest.mark.parametrize(("start", "stop"), [(-0.1, 0.2), (0.2, 0.2), (0.3, 0.2), (0.1, 0.5)])
def test_span_outside_the_recording(start, stop) -> None:
    with pytest.raises(ValueError, match=r"not inside the recording of 0\.40 s"):
        speech_targets([1, 2, 3, 4], start, stop)
