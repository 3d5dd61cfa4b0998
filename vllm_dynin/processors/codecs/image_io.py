"""Image files → RGB → normalised pixels, and back to PIL.

Files are opened by content (a wrong extension does not matter), from a fixed list of formats, in a
process of their own (`image_worker`), and their size is checked before anything is decoded.

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
from PIL import Image

from vllm_dynin.processors.codecs import image_decode, image_worker
from vllm_dynin.processors.codecs.limits import (
    DEFAULT_LIMITS,
    MediaError,
    MediaLimits,
    open_source,
)
from vllm_dynin.processors.codecs.media_worker import run_worker

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


def open_image(source: ImageSource, limits: MediaLimits = DEFAULT_LIMITS) -> Image.Image:
    """Open an image as RGB, upright, as a viewer shows it.

    A file is decoded in a process of its own (`media_worker`), memory and processor time capped.
    Animated files give their first frame, several pages the first. EXIF orientation is applied.
    Transparency is laid on white, 16-bit grey is scaled to 8 bits, other modes and colour profiles
    are converted (`image_colours.rgb_converter`). Over `max_pixels` the image is reduced: a JPEG
    while it is decoded, others in strips after it. A JPEG that is cut off is grey where nothing
    came.
    NOTE: the original ignores orientation and colour profiles and drops the alpha channel, which
    shows whatever colour lies hidden below it; opaque upright sRGB images are the same in both.

    Args:
        source: path, bytes, seekable binary file, PIL image, or uint8 array [H, W, 3].
        limits: bytes, pixels and aspect ratio are checked before decoding.

    Returns:
        A new (or already loaded) RGB image.

    Raises:
        MediaError: not an image, broken, of an unsupported kind, or over a limit.
    """
    return _open(source, limits, "image")


def open_mask(source: ImageSource, limits: MediaLimits = DEFAULT_LIMITS) -> Image.Image:
    """Open a mask: white where something is to be made anew.

    Transparent pixels are marked, as in OpenAI's API; in an image without any transparency the
    white ones are. Marks may be soft. The strongest becomes 255 and the others keep their
    proportion to it, so a brush of half its strength marks too; a mask with nothing above a quarter
    of full strength marks nothing. Otherwise as `open_image`.

    Args:
        source: as for `open_image`.
        limits: as for `open_image`.

    Returns:
        Mode `L`, upright.

    Raises:
        MediaError: not an image, broken, of an unsupported kind, or over a limit.
    """
    return _open(source, limits, "mask")


def _open(source: ImageSource, limits: MediaLimits, what: str) -> Image.Image:
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if isinstance(source, Image.Image):
        image_decode.check_size(source.size, limits)
        read = image_decode.marks if what == "mask" else image_decode.shown
        return read(source, limits)
    with open_source(source, limits) as stream:
        raw = run_worker(image_worker.__name__, stream, {"what": what}, limits, "image")
    size = image_worker.SIZE.unpack_from(raw)
    mode, pixels = "L" if what == "mask" else "RGB", memoryview(raw)[image_worker.SIZE.size :]
    return Image.frombytes(mode, size, pixels)


def _from_array(array: npt.NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise MediaError(
            f"an image array must be uint8 [height, width, 3] and not empty; got {array.dtype} "
            f"{list(array.shape)}"
        )
    return Image.fromarray(array)


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
