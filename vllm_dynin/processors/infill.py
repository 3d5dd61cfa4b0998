"""Infilling: an answer of which a part is known, and which codes or tokens of it are generated.

A target list holds one id a slot, the mask id where the model is to generate; the other ids stay.
It is what a request carries as `dynin_target_token_ids`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from PIL import Image

from vllm_dynin.processors.codecs.image_io import resize_and_crop
from vllm_dynin.tokens import Vocabulary

_MARKED = 128
"""Brightness of a mask's pixel from which on it counts as marked: half of the strongest."""
_SAME_RATIO = 0.01
"""By what share the proportions of a mask may differ from those of its image."""


def fit_mask(mask: Image.Image, image: Image.Image, height: int, width: int) -> Image.Image:
    """Bring a mask to height × width pixels exactly as its image is.

    A mask of another size than its image is scaled to it; their proportions must be the same.

    Args:
        mask: mode `L`, see `image_io.open_mask`; white is marked.
        image: the image it belongs to, before it was brought to size.
        height: in pixels.
        width: in pixels.

    Returns:
        Mode `L`.

    Raises:
        ValueError: mask and image differ in their proportions.
    """
    if mask.size != image.size:
        wide, high = mask.width * image.height, image.width * mask.height
        # Rounding to whole pixels may have moved either side by one.
        if abs(wide - high) > max(_SAME_RATIO * high, *image.size, *mask.size):
            raise ValueError(
                f"the mask is {mask.width}×{mask.height} pixels, its image {image.width}×"
                f"{image.height}; draw the mask at the size of the image, or in its proportions"
            )
        mask = mask.resize(image.size, Image.Resampling.BICUBIC)
    return resize_and_crop(mask, height, width)


def marked_codes(mask: Image.Image, patch: int) -> list[bool]:
    """Which codes of an image are to be generated: those with any marked pixel in their patch.

    Args:
        mask: at the size the image is generated at; white is marked.
        patch: pixels per code along each side; divides both sides of the mask.

    Returns:
        One entry a code, raster order.

    Raises:
        ValueError: nothing is marked.
    """
    is_marked_HW = np.asarray(mask.convert("L")) >= _MARKED
    height, width = is_marked_HW.shape
    cells = is_marked_HW.reshape(height // patch, patch, width // patch, patch)
    is_marked_N = cells.any(axis=(1, 3)).reshape(-1)
    if not is_marked_N.any():
        raise ValueError(
            "the mask marks nothing, so there is nothing to generate; paint what is to change white"
        )
    return [bool(marked) for marked in is_marked_N]


def image_targets(
    codes: Sequence[int], is_generated: Sequence[bool], vocabulary: Vocabulary
) -> tuple[int, ...]:
    """Targets of an image of which some codes are known.

    Args:
        codes: of the known image, without offset, raster order.
        is_generated: for each code, whether it is to be generated.
        vocabulary: the id layout.

    Raises:
        ValueError: the lengths differ, or a code is out of range.
    """
    if len(codes) != len(is_generated):
        raise ValueError(f"{len(codes)} codes but {len(is_generated)} marks; give one mark a code")
    ids = vocabulary.image_ids(codes)
    return tuple(
        vocabulary.mask if marked else token
        for token, marked in zip(ids, is_generated, strict=True)
    )


def speech_targets(
    units: Sequence[int],
    start: float,
    stop: float,
    *,
    units_per_second: float,
    num_units: int | None,
    vocabulary: Vocabulary,
) -> tuple[int, ...]:
    """Targets of a recording of which a span is spoken anew.

    Args:
        units: of the whole recording, repeats kept, without offset: unit i sounds from second
            `i / units_per_second` on.
        start: of the span, in seconds.
        stop: of the span, in seconds.
        units_per_second: of `units`.
        num_units: slots to generate; None takes as many as the span had, repeats collapsed.
        vocabulary: the id layout.

    Returns:
        The collapsed units before the span, masks, the collapsed units behind it, end of audio.

    Raises:
        ValueError: the span is not inside the recording, gets no unit, or a unit is out of range.
    """
    seconds = len(units) / units_per_second
    if not 0 <= start < stop <= seconds:
        raise ValueError(
            f"the span {start:g}..{stop:g} s is not inside the recording of {seconds:.2f} s; "
            "give seconds with 0 <= start < stop <= its duration"
        )
    if num_units is not None and num_units < 1:
        raise ValueError(f"num_units={num_units}: the span needs at least one unit")
    first, last = round(start * units_per_second), max(1, round(stop * units_per_second))
    count = len(_collapsed(units[first:last])) if num_units is None else num_units
    return (
        *vocabulary.speech_ids(_collapsed(units[:first])),
        *[vocabulary.mask] * max(1, count),
        *vocabulary.speech_ids(_collapsed(units[last:])),
        vocabulary.eoa,
    )


def _collapsed(units: Sequence[int]) -> list[int]:
    return [unit for unit, _ in groupby(units)]
