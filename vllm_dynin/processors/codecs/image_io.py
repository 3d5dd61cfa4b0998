"""Image files → RGB → normalised pixels, and back to PIL.

Files are opened by content (a wrong extension does not matter), from a fixed list of formats, and
their size is checked before anything is decoded.

PyTorch is imported where it is needed only: the video worker uses this module without it.

Source: Dynin-Omni (d6e3ca8) `training/utils.py:image_transform` for the preprocessing,
`validation/t2i_generate.py` for the output.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from vllm_dynin.processors.codecs.limits import (
    DEFAULT_LIMITS,
    MediaError,
    MediaLimits,
    open_source,
)

if TYPE_CHECKING:
    from torch import Tensor

ImageSource = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | Image.Image
    | npt.NDArray[np.uint8]
)

# Pillow reads more, among them EPS, which starts Ghostscript. A build may lack AVIF or WebP.
Image.init()
FORMATS = tuple(
    name
    for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
    if name in Image.OPEN
)


def open_image(source: ImageSource, limits: MediaLimits = DEFAULT_LIMITS) -> Image.Image:
    """Open an image as RGB, upright.

    Animated files give their first frame. EXIF orientation is applied. Transparency is laid on
    white, 16-bit grey is scaled to 8 bits, CMYK and palettes are converted.
    NOTE: the original ignores orientation and drops the alpha channel, which shows whatever colour
    lies hidden below it; opaque upright images are the same in both.

    Args:
        source: path, bytes, seekable binary file, PIL image, or uint8 array [H, W, 3].
        limits: bytes, pixels and aspect ratio are checked before decoding.

    Returns:
        A new (or already loaded) RGB image.

    Raises:
        MediaError: not an image, broken, of an unsupported kind, or over a limit.
    """
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if isinstance(source, Image.Image):
        check_size(source.size, limits)
        return _decode(source, limits)
    with open_source(source, limits) as stream:
        try:
            image = Image.open(stream, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise MediaError(f"{error}; the limit is max_pixels={limits.max_pixels}") from error
        except Exception as error:
            raise MediaError(
                f"not a readable image ({_reason(error)}); supported: {', '.join(FORMATS)}"
            ) from error
        check_size(image.size, limits)
        return _decode(image, limits)


def check_size(size: tuple[int, int], limits: MediaLimits) -> None:
    """Check width and height.

    Raises:
        MediaError: no pixels, too many, or too long and thin.
    """
    width, height = size
    if width < 1 or height < 1:
        raise MediaError(f"the image is {width}×{height}; it has no pixels")
    limits.check("max_pixels", width * height, f"the pixel count of a {width}×{height} image")
    ratio = max(width, height) / min(width, height)
    limits.check("max_aspect_ratio", ratio, f"the aspect ratio of a {width}×{height} image")


def _decode(image: Image.Image, limits: MediaLimits) -> Image.Image:
    try:
        image.load()
        check_size(image.size, limits)  # ICO-like formats learn their size only now
        return _to_rgb(ImageOps.exif_transpose(image))
    except MediaError:
        raise
    # Pillow's parsers let through whatever a damaged file leads to: OSError, SyntaxError,
    # struct.error, IndexError, zlib.error, … None of them may take a server down.
    except Exception as error:
        raise MediaError(f"the image is damaged or unsupported ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its text is the address of a Python object
        return "unknown format or incomplete header"
    return f"{type(error).__name__}: {error}"[:200]


def _from_array(array: npt.NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise MediaError(
            f"an image array must be uint8 [height, width, 3] and not empty; got {array.dtype} "
            f"{list(array.shape)}"
        )
    return Image.fromarray(array)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits to white
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65_535:
            raise MediaError(
                f"integer pixels of {values.min()}..{values.max()} do not fit 16 bits; "
                "convert the image to 8 or 16 bits first"
            )
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise MediaError("floating-point pixels have no agreed range; convert the image to 8 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def resize_and_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scale until the image covers height × width (bicubic, antialiased), then crop the centre.

    For height = width this is the original's rule: the shorter side becomes the resolution, the
    longer one int(resolution · long / short), offsets round((size - resolution) / 2), half to even.

    Args:
        image: RGB; not modified.
        height: of the result, in pixels.
        width: of the result, in pixels.

    Raises:
        ValueError: a side is not positive.
    """
    if height < 1 or width < 1:
        raise ValueError(f"the target size {width}×{height} must be positive")
    if image.width * height <= image.height * width:  # taller than the target
        size = (width, width * image.height // image.width)
    else:
        size = (height * image.width // image.height, height)
    left = round((size[0] - width) / 2)
    top = round((size[1] - height) / 2)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + width, top + height))


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Stack RGB images of one size as float32 [B, 3, H, W] in [-1, 1].

    Raises:
        ValueError: no images, not RGB, or of several sizes.
    """
    import torch

    sizes = {(image.mode, image.size) for image in images}
    if len(sizes) != 1 or next(iter(sizes))[0] != "RGB":
        raise ValueError(
            f"a batch needs RGB images of one size, got {sorted(sizes) or 'none'}; open them with "
            "open_image and bring them to one size with resize_and_crop"
        )
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div(255).sub(0.5).div(0.5)


def to_images(pixels_B3HW: Tensor) -> list[Image.Image]:
    """Pixels in [-1, 1] → RGB images; values outside are clamped, fractions cut off (not rounded).

    Args:
        pixels_B3HW: any float dtype and device; not modified.
    """
    import torch

    scaled = (pixels_B3HW.detach().float() + 1).div(2).clamp(0, 1).mul(255)
    array = scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in array]
