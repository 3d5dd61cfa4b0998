"""Pictures of real variety: each shows its digit. `tests/engine/field` asks about them."""

import io

import numpy as np
import pytest
from helpers.picture_variety import original, pictures
from PIL import Image

from vllm_dynin.processors.codecs.image_decode import decode_image
from vllm_dynin.processors.codecs.image_io import resize_and_crop
from vllm_dynin.processors.codecs.limits import DEFAULT_LIMITS


def cells(image):
    small = resize_and_crop(image, 64, 64).resize((8, 8), Image.Resampling.BOX)
    return np.asarray(small.convert("L")) > 127


def test_every_file_shows_its_digit():
    shown = pictures()
    assert len(shown) >= 250
    wrong = {}
    for picture in shown:
        image = decode_image(io.BytesIO(picture.data), DEFAULT_LIMITS)  # as the worker does
        assert image.mode == "RGB", picture.name
        differ = int((cells(image) != cells(original(picture.index))).sum())
        if differ:
            wrong[picture.name] = differ
    assert wrong == {}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 40, 200, 1000])
@pytest.mark.parametrize("is_progressive", [False, True])
def test_jpegs_cut_anywhere(count, is_progressive):
    """A browser shows what came, whatever was cut in two."""
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 60, (256, 256, 3), dtype=np.uint8)
    picture = Image.blend(original(1500, 256), Image.fromarray(noise), 0.3)
    picture.save(stream, "JPEG", progressive=is_progressive)
    data = stream.getvalue()
    whole = np.asarray(decode_image(io.BytesIO(data), DEFAULT_LIMITS)).astype(int)
    cut = np.asarray(decode_image(io.BytesIO(data[:-count]), DEFAULT_LIMITS)).astype(int)
    share = count / len(data)
    assert np.abs(whole - cut).mean() < 2 + 300 * share
    if not is_progressive:
        rows = int(256 * (1 - share)) - 48
        assert np.array_equal(cut[:rows], whole[:rows])
