"""Image files → RGB or masks, upright, in bounded memory: what the image worker does.

PyTorch is not imported here and NumPy only where a file needs it: starting the worker is most of
what opening a picture costs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil, isqrt
from typing import IO, BinaryIO

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from vllm_dynin.processors.codecs.image_colours import alpha_of, bands, rgb_converter
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits

FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000", "ICO", "CUR", "ICNS"),
    *("DIB", "TGA", "QOI", "PSD", "DDS", "PCX", "DCX", "SGI", "SUN", "XBM", "XPM", "MSP", "FITS"),
    *("BLP", "FTEX", "PIXAR", "SPIDER", "GBR", "FLI"),
)
"""What is read: Pillow's readers that decode in this process. It has more, among them EPS, which
starts Ghostscript. Those that Pillow loads anyway are first."""

_JPEG_SCALES = (2, 4, 8)
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Of a JPEG's segment, between scans. Within one, 0xff is followed by 0 or a restart's number."""
_END_OF_IMAGE = 0xD9
_LONGEST_SEGMENT = 1 << 17
_PNG_DEPTH = 24
"""Where a PNG states its bits a sample."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_FAINT = 64
"""A mask that marks nothing more strongly than this (of 255) marks nothing."""


def decode_image(stream: BinaryIO, limits: MediaLimits) -> Image.Image:
    """A file as RGB; see `image_io.open_image`.

    Raises:
        MediaError: not an image, broken, or over a limit.
    """
    with opened(stream, limits) as image:
        return shown(image, limits)


def decode_mask(stream: BinaryIO, limits: MediaLimits) -> Image.Image:
    """A file as a mask, mode L; see `image_io.open_mask`.

    Raises:
        MediaError: not an image, broken, or over a limit.
    """
    with opened(stream, limits) as image:
        return marks(image, limits)


@contextmanager
def opened(stream: BinaryIO, limits: MediaLimits) -> Iterator[Image.Image]:
    """A file: its header is read, its size checked, and a JPEG that is too large set to be reduced.

    Meanwhile Pillow's settings are ours; they are the process's, which in serving is a worker's.

    Raises:
        MediaError: not an image, or over a limit.
    """
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS = None  # our own limit is checked before anything is decoded
    ImageFile.LOAD_TRUNCATED_IMAGES = True  # in a header: wrong check sums of notes do no harm
    try:
        try:
            image = _identified(stream)
        except MemoryError:
            raise
        except Exception as error:
            raise MediaError(_unreadable(stream, error)) from error
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        check_size(image.size, limits)
        with _as_refusals():
            if isinstance(image, JpegImageFile):
                _prepare_jpeg(image, limits)
            elif image.format == "PNG":
                _scale_transparency(image, stream)
        yield image
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _identified(stream: BinaryIO) -> Image.Image:
    if stream.read(3) == b"\xff\xd8\xff":
        stream.seek(0)
        # Not by `Image.open`, which fails on a damaged list of further pictures (MPO).
        return JpegImageFile(stream)
    for is_last in (False, True):
        stream.seek(0)
        if is_last:  # imported only where the common readers do not know the file
            Image.init()
        else:
            Image.preinit()
        try:
            return Image.open(stream, formats=[name for name in FORMATS if name in Image.OPEN])
        except UnidentifiedImageError:
            if is_last:
                raise
    raise AssertionError


def _unreadable(stream: BinaryIO, error: Exception) -> str:
    stream.seek(0)
    head = stream.read(12)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC:
        return "HEIC pictures are not read here; export the photo as JPEG"
    return (
        f"not a readable image ({_reason(error)}); send JPEG, PNG, WebP, GIF, TIFF, BMP or AVIF "
        "(others that are read: docs/codecs.md)"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its text is the address of a Python object
        return "unknown format or incomplete header"
    return f"{type(error).__name__}: {error}"[:200]


def check_size(size: tuple[int, int], limits: MediaLimits) -> None:
    """Check width and height of an image as it is in its file.

    Raises:
        MediaError: no pixels, too many, or too long and thin.
    """
    width, height = size
    if width < 1 or height < 1:
        raise MediaError(f"the image is {width}×{height}; it has no pixels")
    limits.check(
        "max_source_pixels", width * height, f"the pixel count of a {width}×{height} image"
    )
    ratio = max(width, height) / min(width, height)
    limits.check("max_aspect_ratio", ratio, f"the aspect ratio of a {width}×{height} image")


def reduction(size: tuple[int, int], limits: MediaLimits) -> int:
    """By which whole number the sides of an image are divided to fit `max_pixels`; 1 mostly."""
    pixels = size[0] * size[1]
    factor = isqrt(pixels // limits.max_pixels)
    while ceil(size[0] / max(factor, 1)) * ceil(size[1] / max(factor, 1)) > limits.max_pixels:
        factor += 1
    return max(factor, 1)


def shown(image: Image.Image, limits: MediaLimits) -> Image.Image:
    """A loaded image as RGB, upright, of `max_pixels` or fewer.

    Raises:
        MediaError: it is broken, or over a limit.
    """
    with _decoding(image, limits):
        convert = rgb_converter(image)
        factor = reduction(image.size, limits)
        if factor == 1:
            result = convert(image)
        else:
            size = (ceil(image.width / factor), ceil(image.height / factor))
            result = Image.new("RGB", size)
            for top, bottom in bands(image, factor):
                part = convert(image.crop((0, top, image.width, bottom)))
                result.paste(part.reduce(factor), (0, top // factor))
        return _upright(result, image)


def marks(image: Image.Image, limits: MediaLimits) -> Image.Image:
    """A loaded image as a mask, upright, mode L, 255 where it marks most.

    Raises:
        MediaError: it is broken, or over a limit.
    """
    factor = reduction(image.size, limits)
    with _decoding(image, limits):
        alpha = alpha_of(image)
        if alpha is not None and alpha.getextrema()[0] < 255 - _FAINT:  # type: ignore[operator]
            mask = _upright(alpha.reduce(factor), image).point(lambda value: 255 - value)
        else:
            mask = shown(image, limits).convert("L")
    _, most = mask.getextrema()
    if not _FAINT <= most < 255:  # type: ignore[operator]
        return mask
    return mask.point(lambda value: min(255, round(value * 255 / most)))


@contextmanager
def _decoding(image: Image.Image, limits: MediaLimits) -> Iterator[None]:
    with _as_refusals():
        image.load()
        check_size(image.size, limits)  # ICO-like formats learn their size only now
        yield


@contextmanager
def _as_refusals() -> Iterator[None]:
    """What Pillow's parsers let through of a damaged file, as refusals of it.

    OSError, SyntaxError, struct.error, IndexError, zlib.error, …: whatever a file leads to.
    """
    try:
        yield
    except (MediaError, MemoryError, ImportError, NameError):
        raise
    except Exception as error:
        raise MediaError(f"the image is damaged or unsupported ({_reason(error)})") from error


def _prepare_jpeg(image: JpegImageFile, limits: MediaLimits) -> None:
    """Have a JPEG decoded at a fraction of its size where that is too large, cut off or not.

    Raises:
        MediaError: nothing but its header came, or its kind takes too much memory at this size.
    """
    width, height = image.size
    if "progression" in image.info:  # libjpeg keeps all coefficients, at full size
        blocks = [h * v for _, h, v, _ in image.layer]
        numbers = width * height * sum(blocks) // max(1, *blocks)
        what = f"the memory for the coefficients of a {width}×{height} progressive JPEG"
        limits.check("max_decode_bytes", 2 * numbers, what)
    factor = reduction(image.size, limits)
    if factor > 1:
        scale = next((scale for scale in _JPEG_SCALES if scale >= factor), _JPEG_SCALES[-1])
        image.draft("RGB", (max(1, width // scale), max(1, height // scale)))
    assert image.fp is not None
    at = image.fp.tell()  # behind the head of the first scan
    end = image.fp.seek(0, os.SEEK_END)
    if end <= at:
        raise MediaError("the image is damaged: nothing but the header of a JPEG came")
    end = _last_whole_segment(image.fp, at, end)
    image.load_read = partial(_read_to_end, image.fp, end)  # type: ignore[method-assign]


def _last_whole_segment(file: IO[bytes], start: int, end: int) -> int:
    """Where a JPEG ends, or the head of a further scan begins that is not there as a whole."""
    start = max(start, end - _LONGEST_SEGMENT)
    file.seek(start)
    tail = file.read()
    *_, marker = (-1, *(found.start() for found in _MARKER.finditer(tail)))
    if marker < 0 or tail[marker + 1] == _END_OF_IMAGE:
        return end
    length = int.from_bytes(tail[marker + 2 : marker + 4], "big")
    is_whole = marker + 4 <= len(tail) and marker + 2 + length <= len(tail)
    return end if is_whole else start + marker


def _read_to_end(file: IO[bytes], end: int, count: int) -> bytes:
    """Bytes of a JPEG and, where its end is missing, a marker of the end.

    A browser shows a photo that is cut off, grey where nothing came; told of the end, so does
    libjpeg. (Pillow's LOAD_TRUNCATED_IMAGES does this too, and hides every other error.)
    """
    return file.read(min(count, max(0, end - file.tell()))) or b"\xff\xd9"


def _scale_transparency(image: Image.Image, stream: BinaryIO) -> None:
    """Bring the transparent grey of a PNG of 1, 2 or 4 bits to 8, as Pillow brings its pixels."""
    clear, position = image.info.get("transparency"), stream.tell()
    stream.seek(_PNG_DEPTH)
    depth = stream.read(1)[0]
    stream.seek(position)
    if image.mode in ("1", "L") and isinstance(clear, int) and depth < 8:
        image.info["transparency"] = clear * 255 // ((1 << depth) - 1)


def _upright(result: Image.Image, image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged notes do not spoil a picture
        return result
    return result if turn is None else result.transpose(turn)
