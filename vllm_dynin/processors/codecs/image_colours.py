"""Pixels of any mode → RGB as a viewer shows them.

PyTorch is not imported here and NumPy only where a mode needs it: the image worker, which is
started for every file, uses this module.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    import numpy.typing as npt

Converter = Callable[[Image.Image], Image.Image]
"""Takes an image, or some rows of it, and gives them in RGB."""

_BAND = 1 << 22
"""Pixels that are converted together where a whole image would need too much memory."""
_SAME_COLOURS = 3
"""Levels of 255 by which an embedded profile may differ from sRGB and still be left alone."""
_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT = 262, 258, 339  # of TIFF
_WHITE_IS_ZERO, _UNSIGNED = 0, 1


def rgb_converter(image: Image.Image) -> Converter:
    """How this image becomes RGB.

    - Transparency is laid on white.
    - 16-bit grey is scaled to 8 bits. Integers of 32 bits and floating-point numbers say nowhere
      what is white: numbers within 0..1 (floating point), 0..255 and 0..65,535 are taken to be of
      that range; others are stretched from the least to the greatest. Not-a-number is black.
    - A colour profile that differs visibly from sRGB is applied.
    - Palettes, two levels, CMYK, YCbCr, HSV and CIELAB are converted.

    Args:
        image: loaded; not modified.

    Returns:
        For this image and for any rows of it.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep(image)
    if image.mode == "LAB":
        transform = _lab_transform()
        return lambda part: _applied(part, transform)
    profile = _profile(image)

    def convert(part: Image.Image) -> Image.Image:
        if not part.has_transparency_data:
            return _opaque(part, profile)
        rgba = _with_alpha(part)
        if profile is not None:
            alpha = rgba.getchannel("A")
            rgba = _opaque(rgba.convert("RGB"), profile).convert("RGBA")
            rgba.putalpha(alpha)
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")

    return convert


def alpha_of(image: Image.Image) -> Image.Image | None:
    """How opaque each pixel is, mode L; None for an image without transparency."""
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I"):
        import numpy as np

        is_clear = np.asarray(image) == image.info["transparency"]
        return Image.fromarray(np.where(is_clear, 0, 255).astype(np.uint8))
    return _with_alpha(image).getchannel("A")


def bands(image: Image.Image, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of the parts that are converted together.

    Args:
        image: of any size.
        multiple: every part but the last has so many rows, or a multiple of it.
    """
    rows = max(multiple, _BAND // image.width // multiple * multiple)
    for top in range(0, image.height, rows):
        yield top, min(top + rows, image.height)


def _with_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and max(clear := image.info["transparency"]) > 255:
        image = image.copy()  # 16 bits a channel in the file, of which Pillow keeps the upper 8
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if image.mode == "La":  # premultiplied
        image = image.convert("LA")
    return image.convert("RGBA")


def _opaque(image: Image.Image, profile: Any) -> Image.Image:
    if profile is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    return _applied(image if image.mode in ("L", "CMYK") else image.convert("RGB"), profile)


def _applied(image: Image.Image, transform: Any) -> Image.Image:
    from PIL import ImageCms

    result = ImageCms.applyTransform(image, transform)
    assert result is not None  # it is for changes in place
    return result


def _lab_transform() -> Any:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")


def _profile(image: Image.Image) -> Any:
    """The transform of the embedded colour profile to sRGB; None where it changes nothing.

    A damaged profile, or one of another kind than the pixels, is passed over, as viewers do.
    """
    data = image.info.get("icc_profile")
    if not data:
        return None
    from PIL import ImageCms

    modes = {"1": "L", "L": "L", "LA": "L", "La": "L", "CMYK": "CMYK"}
    mode = modes.get(image.mode, "RGB")
    if mode == "L" and image.has_transparency_data:
        mode = "RGB"  # the composition is made in RGB; a profile of grey does not fit it
    spaces = {"L": "GRAY", "CMYK": "CMYK", "RGB": "RGB"}
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if profile.profile.xcolor_space.strip() != spaces[mode]:
            return None
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(profile, srgb, mode, "RGB")
        if mode == "CMYK":
            return transform
        probe = _probe().convert(mode)
        shown = _applied(probe, transform)
    except (ImageCms.PyCMSError, ValueError, OSError, TypeError):
        return None
    plain = probe.convert("RGB")
    gaps = [abs(a - b) for a, b in zip(shown.tobytes(), plain.tobytes(), strict=True)]
    return None if max(gaps) <= _SAME_COLOURS else transform


def _probe() -> Image.Image:
    """Colours of the whole cube, and greys."""
    levels = range(0, 256, 51)
    colours = [bytes((r, g, b)) for r in levels for g in levels for b in levels]
    greys = [bytes((value,) * 3) for value in range(0, 256, 15)]
    data = b"".join(colours + greys)
    return Image.frombytes("RGB", (len(data) // 3, 1), data)


def _deep(image: Image.Image) -> Converter:
    """More than 8 bits of grey."""
    import numpy as np

    tags = getattr(image, "tag_v2", {})
    is_inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    is_unsigned = 32 in tags.get(_BITS, ()) and _UNSIGNED in tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))
    clear = image.info.get("transparency")

    def values(part: Image.Image) -> npt.NDArray[Any]:
        array = np.asarray(part)
        if part.mode == "I" and is_unsigned:
            return array.view(np.uint32)
        return np.where(np.isfinite(array), array, 0) if part.mode == "F" else array

    if image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I"):
        most = 4095 if 12 in tags.get(_BITS, ()) else 65_535
        scale = _whole if most == 65_535 else _linear(0, most)
    else:
        low, high = float("inf"), float("-inf")
        for top, bottom in bands(image):
            array = values(image.crop((0, top, image.width, bottom)))
            low, high = min(low, float(array.min())), max(high, float(array.max()))
        scale = _scale_of(low, high, is_float=image.mode == "F")

    def convert(part: Image.Image) -> Image.Image:
        grey = scale(values(part))
        if is_inverted:
            grey = 255 - grey
        if isinstance(clear, int):
            grey = np.where(np.asarray(part) == clear, np.uint8(255), grey)
        return Image.fromarray(grey).convert("RGB")

    return convert


_Scale = Callable[["npt.NDArray[Any]"], "npt.NDArray[Any]"]


def _scale_of(low: float, high: float, *, is_float: bool) -> _Scale:
    if low >= 0 and is_float and high <= 1:
        return _linear(0, 1)
    if low >= 0 and high <= 255:
        return lambda values: values.astype("uint8")
    return _whole if low >= 0 and high <= 65_535 else _linear(low, high)


def _whole(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """0..65,535 → uint8, each level of 8 bits from 257 of 16."""
    return (values // 257).astype("uint8")


def _linear(low: float, high: float) -> _Scale:
    width = (high - low) or 1.0
    return lambda values: (((values.astype("float64") - low) / width) * 255 + 0.5).astype("uint8")
