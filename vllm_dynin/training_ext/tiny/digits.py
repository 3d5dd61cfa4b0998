"""Pictures of the tiny world: handwritten digits, edits of them, and clips in which one moves.

The digits are scikit-learn's 1,797 of 8×8 pixels, enlarged to white on black. They split into
`TRAIN` and `TEST` by a fixed permutation.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

IMAGE_SIDE = 64
"""Pixels a side of an image: one cell of the patch codec per pixel of the digit."""
CLIP_SIDE = 48
"""Pixels a side of a frame: three by three codes, four cells for nine pixels of the digit."""
CLIP_FRAMES = 9
"""Frames of a clip."""
CLIP_STEP = 3
"""Pixels the digit moves from one frame to the next: half a pixel of the digit."""

Direction = Literal["left", "right", "up", "down"]
DIRECTIONS: dict[Direction, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
"""Where a digit can move: columns and rows a frame."""

Edit = Literal["invert", "mirror", "turn"]
EDITS: dict[Edit, tuple[str, ...]] = {
    "invert": ("invert the picture", "swap black and white"),
    "mirror": ("mirror the picture", "flip it from left to right"),
    "turn": ("turn the picture upside down", "rotate it by half a turn"),
}
"""What can be asked for, in words."""
_CARRY_OUT: dict[Edit, Callable[[Image.Image], Image.Image]] = {
    "invert": ImageOps.invert,
    "mirror": ImageOps.mirror,
    "turn": lambda image: image.transpose(Image.Transpose.ROTATE_180),
}

NUM_TEST = 360
_THRESHOLD = round(255 * 7.5 / 16)  # the patch codec's, between two levels of the digits


@cache
def _digits() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(
            f"{error}: the tiny world takes its digits from scikit-learn; pip install scikit-learn"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return pixels.reshape(-1, 8, 8)[order], labels[order].astype(np.int64)


def num_train() -> int:
    """How many digits are trained on; the `NUM_TEST` behind them are held out."""
    return len(_digits()[1]) - NUM_TEST


def test_indices() -> range:
    """The held-out digits, as indices for the functions below."""
    return range(num_train(), num_train() + NUM_TEST)


def label(index: int) -> int:
    """Which digit it is."""
    return int(_digits()[1][index])


def image(index: int, side: int = IMAGE_SIDE) -> Image.Image:
    """A digit in RGB, white on black, every pixel of it a square.

    Args:
        index: in 0 .. 1796.
        side: of the image in pixels, a multiple of 8.
    """
    grey = np.round(_digits()[0][index] / 16 * 255).astype(np.uint8)
    return Image.fromarray(np.kron(grey, np.ones((side // 8, side // 8), np.uint8))).convert("RGB")


def varied(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The same digit as another hand might have written it: turned, shifted, lighter or darker."""
    angle, scale = math.radians(rng.uniform(-12, 12)), rng.uniform(0.9, 1.1)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    middle = picture.width / 2
    across, down = (middle + rng.uniform(-0.06, 0.06) * picture.width for _ in range(2))
    data: tuple[float, ...] = (cos, -sin, middle - cos * across + sin * down)
    data += (sin, cos, middle - sin * across - cos * down)
    turned = picture.transform(
        picture.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR
    )
    brightness = rng.uniform(0.85, 1.2)
    return turned.point(lambda value: min(255, round(value * brightness)))


def black_and_white(picture: Image.Image) -> Image.Image:
    """Two levels, as the patch codec sees them; an edit of these is exact in codes."""
    return picture.convert("L").point(lambda v: 255 if v > _THRESHOLD else 0).convert("RGB")


def edited(picture: Image.Image, edit: Edit) -> Image.Image:
    """The picture after an edit."""
    return _CARRY_OUT[edit](picture)


def clip(picture: Image.Image, direction: Direction) -> list[Image.Image]:
    """`CLIP_FRAMES` frames in which a digit moves across, in its middle place halfway through.

    Args:
        picture: of `CLIP_SIDE` pixels a side, on black.
        direction: where to.
    """
    across, down = DIRECTIONS[direction]
    frames = []
    for number in range(CLIP_FRAMES):
        offset = CLIP_STEP * (number - CLIP_FRAMES // 2)
        frame = Image.new("RGB", picture.size)
        frame.paste(picture, (offset * across, offset * down))
        frames.append(frame)
    return frames
