"""About two hundred and fifty pictures of handwritten digits, each in another form.

The names say what is special. Every one of them shows its digit white on black, as a viewer would
show the file; `URLS` are ways to write one of them as a data URL.
"""

from __future__ import annotations

import base64
import io
import struct
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from helpers.png_files import GREY, GREY_ALPHA, PALETTE, RGB, RGB_ALPHA, chunk, png
from vllm_dynin.training_ext.tiny import digits
from vllm_dynin.training_ext.tiny.words import DIGIT_WORDS

Maker = Callable[[Image.Image], bytes]
"""Takes the picture (RGB, two levels) and gives a file of it."""

SHOWN = tuple(digits.test_indices())[:8]
"""Held-out digits; the tests say that dynin-tiny knows all of them."""
EXIF_ORIENTATION = 0x0112
_STORED = {  # how a picture is stored that is shown upright under an orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class Picture:
    """One file.

    Args:
        name: what is special about it.
        index: of the digit.
        data: the file.
    """

    name: str
    index: int
    data: bytes

    @property
    def word(self) -> str:
        """The right answer."""
        return DIGIT_WORDS[digits.label(self.index)]


def original(index: int, side: int = 64) -> Image.Image:
    """The digit that a file shows: RGB, two levels, so that its codes are exact."""
    return digits.black_and_white(digits.image(index, side))


def pictures() -> list[Picture]:
    """All of them, the digits by turns."""
    made = []
    for number, (name, maker) in enumerate(_makers()):
        index = SHOWN[number % len(SHOWN)]
        made.append(Picture(name, index, maker(original(index))))
    return made


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """A file by Pillow."""
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def saved(image_format: str, mode: str | None = None, side: int = 64, **options: Any) -> Maker:
    """A file by Pillow, of a mode and at a size."""

    def make(image: Image.Image) -> bytes:
        scaled = image.resize((side, side), Image.Resampling.NEAREST)
        return encoded(scaled if mode is None else scaled.convert(mode), image_format, **options)

    return make


def _makers() -> Iterator[tuple[str, Maker]]:
    for family in (_pngs, _png_notes, _jpegs, _webps, _gifs, _bitmaps, _tiffs, _portable, _others,
                   _orientations, _shapes, _profiles, _cut):  # fmt: skip
        yield from family()


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("L"))


def _samples(image: Image.Image, kind: int, depth: int) -> NDArray[np.integer]:
    """White as the largest number; transparent instead of white where there is alpha."""
    is_white = _grey(image)[..., None] > 127
    most = (1 << depth) - 1
    colours = np.where(is_white, most, 0)
    if kind in (GREY_ALPHA, RGB_ALPHA):
        count = 1 if kind == GREY_ALPHA else 3
        hidden = np.where(is_white, most // 3, 0).repeat(count, 2)  # what lies below is not shown
        return np.concatenate([hidden, most - colours], 2)
    return colours.repeat(3 if kind == RGB else 1, 2)


def _pngs() -> Iterator[tuple[str, Maker]]:
    kinds = [(GREY, d) for d in (1, 2, 4, 8, 16)] + [(PALETTE, d) for d in (1, 2, 4, 8)]
    kinds += [(kind, d) for kind in (RGB, GREY_ALPHA, RGB_ALPHA) for d in (8, 16)]
    for kind, depth in kinds:
        for is_interlaced in (False, True):

            def make(image: Image.Image, kind=kind, depth=depth, laced=is_interlaced) -> bytes:
                count = 1 << depth if kind == PALETTE else 0
                palette = bytes(3 * max(count - 1, 0)) + b"\xff" * 3
                notes = chunk(b"PLTE", palette) if kind == PALETTE else b""
                samples = _samples(image, kind, depth)
                return png(samples, kind, depth, is_interlaced=laced, notes=notes)

            yield f"png colour type {kind}, {depth} bits, interlaced {is_interlaced}", make
    for kind, depth in ((GREY, 8), (GREY, 16), (GREY, 2), (RGB, 8), (RGB, 16)):

        def clear(image: Image.Image, kind=kind, depth=depth) -> bytes:
            level = (1 << depth) // 3  # of the digit, which is transparent, so white
            samples = np.where(_samples(image, kind, depth) > 0, level, 0)
            notes = chunk(b"tRNS", struct.pack(">H", level) * (3 if kind == RGB else 1))
            return png(samples, kind, depth, notes=notes)

        yield f"png colour type {kind}, {depth} bits, one colour transparent", clear

    def clear_palette(image: Image.Image) -> bytes:
        notes = chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", b"\xff\0")
        return png(_samples(image, PALETTE, 1), PALETTE, 1, notes=notes)

    yield "png palette of two blacks, one of them transparent", clear_palette
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield f"png by Pillow, {mode}", saved("PNG", mode)


def _png_notes() -> Iterator[tuple[str, Maker]]:
    def noted(notes: bytes, parts: int = 1) -> Maker:
        return lambda image: png(_samples(image, RGB, 8), RGB, notes=notes, num_parts=parts)

    text = chunk(b"tEXt", b"Comment\0hello")
    yield "png in 40 parts", noted(b"", 40)
    yield "png with a comment", noted(text)
    yield "png, wrong check sum of a comment", noted(text[:-1] + b"?")
    yield "png, gamma", noted(chunk(b"gAMA", struct.pack(">I", 45455)))
    yield "png, resolution", noted(chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1)))
    yield "png, unknown chunk", noted(chunk(b"abCd", b"1234"))
    yield "png, damaged profile", noted(chunk(b"iCCP", b"x\0\0rubbish"))
    yield "png, damaged exif", noted(chunk(b"eXIf", b"rubbish" * 5))
    yield "png, long text", lambda image: encoded(image, "PNG", pnginfo=_long_text())
    for level in (0, 1, 9):
        yield f"png, level {level}", saved("PNG", compress_level=level)
    yield (
        "apng",
        lambda image: encoded(
            image, "PNG", save_all=True, append_images=[ImageOps.invert(image)], duration=100
        ),
    )
    yield "png, rubbish behind it", lambda image: encoded(image, "PNG") + b"\0rubbish" * 50


def _long_text() -> PngInfo:
    notes = PngInfo()
    notes.add_itxt("XML:com.adobe.xmp", "<x/>" * 20_000, zip=True)
    return notes


def _jpegs() -> Iterator[tuple[str, Maker]]:
    for quality in (20, 50, 75, 90, 100):
        for chroma in ("4:4:4", "4:2:2", "4:2:0"):
            options = {"quality": quality, "subsampling": chroma}
            yield f"jpeg {quality} {chroma}", saved("JPEG", side=192, **options)
    for chroma in ("4:4:4", "4:2:0"):
        yield (
            f"jpeg progressive {chroma}",
            saved("JPEG", side=192, progressive=True, subsampling=chroma),
        )
    yield "jpeg grey", saved("JPEG", "L")
    yield "jpeg grey progressive", saved("JPEG", "L", progressive=True)
    yield "jpeg cmyk", saved("JPEG", "CMYK", side=128)
    yield "jpeg optimised", saved("JPEG", side=128, optimize=True)
    yield "jpeg in RGB", saved("JPEG", side=128, keep_rgb=True)
    yield "jpeg, restart markers", saved("JPEG", side=128, restart_marker_rows=1)
    yield "jpeg, restart markers in blocks", saved("JPEG", side=128, restart_marker_blocks=3)
    yield "jpeg, comment", saved("JPEG", side=128, comment=b"\xff\xd8 hello")
    yield "jpeg, resolution", saved("JPEG", side=128, dpi=(300, 300))
    yield "jpeg, damaged exif", saved("JPEG", side=128, exif=b"Exif\0\0rubbish" * 20)
    yield "jpeg, damaged profile", saved("JPEG", side=128, icc_profile=b"rubbish" * 99)
    yield (
        "jpeg, several pictures",
        lambda image: encoded(image, "MPO", save_all=True, append_images=[ImageOps.invert(image)]),
    )
    yield "jpeg, damaged list of pictures", _damaged_mpo
    yield "jpeg, rubbish behind it", lambda image: encoded(image, "JPEG") + b"\0rubbish" * 50


def _damaged_mpo(image: Image.Image) -> bytes:
    data = encoded(image, "MPO", save_all=True, append_images=[ImageOps.invert(image)])
    at = data.index(b"MPF\0")
    return data[: at + 8] + b"\xff" * 30 + data[at + 38 :]


def _webps() -> Iterator[tuple[str, Maker]]:
    for quality in (30, 80, 100):
        yield f"webp {quality}", saved("WEBP", side=128, quality=quality)
    for method in (0, 6):
        yield f"webp lossless, method {method}", saved("WEBP", lossless=True, method=method)
    yield "webp, transparent digit", lambda image: encoded(_clear(image), "WEBP", lossless=True)
    yield (
        "webp, transparent digit, lossy",
        lambda image: encoded(
            _clear(image.resize((256, 256), Image.Resampling.NEAREST)), "WEBP", exact=True
        ),
    )
    yield (
        "webp, animated",
        lambda image: encoded(
            image, "WEBP", save_all=True, append_images=[ImageOps.invert(image)], lossless=True
        ),
    )


def _clear(image: Image.Image) -> Image.Image:
    """Black all over; the digit is transparent."""
    black = Image.new("RGBA", image.size, "black")
    black.putalpha(ImageOps.invert(image.convert("L")))
    return black


def _gifs() -> Iterator[tuple[str, Maker]]:
    yield "gif", saved("GIF")
    yield "gif, two colours", saved("GIF", "1")
    yield "gif, interlaced", saved("GIF", interlace=1)
    yield "gif, not interlaced", saved("GIF", interlace=0)
    yield "gif, transparent digit", lambda image: encoded(_clear(image), "GIF")
    yield (
        "gif, animated",
        lambda image: encoded(
            image, "GIF", save_all=True, append_images=[ImageOps.invert(image)], duration=100
        ),
    )
    yield "gif, comment", saved("GIF", comment=b"hello" * 30)


def _bitmaps() -> Iterator[tuple[str, Maker]]:
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"bmp {mode}", saved("BMP", mode)
    yield "bmp from the top", _top_down
    yield "bmp 5-6-5", lambda image: _deep_bmp(image, 16, (0xF800, 0x07E0, 0x001F))
    yield (
        "bmp 32 bits with masks",
        lambda image: _deep_bmp(image, 32, (0xFF0000, 0x00FF00, 0x0000FF)),
    )
    yield "dib", saved("DIB")
    for size in (64, 128):
        yield f"ico {size}", saved("ICO", side=size, sizes=[(size, size)])
    yield "ico of bitmaps", saved("ICO", sizes=[(64, 64)], bitmap_format="bmp")
    yield "icns", saved("ICNS", "RGBA", side=128)


def _top_down(image: Image.Image) -> bytes:
    data = bytearray(encoded(ImageOps.flip(image), "BMP"))
    data[22:26] = struct.pack("<i", -image.height)
    return bytes(data)


def _deep_bmp(image: Image.Image, bits: int, masks: tuple[int, int, int]) -> bytes:
    white = sum(masks)
    rows = np.where(_grey(image)[::-1] > 127, white, 0).astype("<u2" if bits == 16 else "<u4")
    body = rows.tobytes()
    info = struct.pack("<IiiHHIIiiII", 40, *image.size, 1, bits, 3, len(body), 0, 0, 0, 0)
    head = struct.pack("<2sIHHI", b"BM", 66 + len(body), 0, 0, 66)
    return head + info + struct.pack("<III", *masks) + body


def _tiffs() -> Iterator[tuple[str, Maker]]:
    for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr"):
        yield f"tiff {mode}", saved("TIFF", mode)
    for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        yield f"tiff RGB, {name}", saved("TIFF", side=128, compression=name)
    for name in ("group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw"):
        yield f"tiff of two levels, {name}", saved("TIFF", "1", compression=name)
    for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield f"tiff grey, {name}", saved("TIFF", "L", compression=name)
    yield (
        "tiff, CIELAB",
        lambda image: encoded(
            ImageCms.profileToProfile(image, *_srgb_and_lab(), outputMode="LAB"), "TIFF"
        ),
    )
    yield (
        "tiff, several pages",
        lambda image: encoded(image, "TIFF", save_all=True, append_images=[ImageOps.invert(image)]),
    )
    yield "tiff, transparent digit", lambda image: encoded(_clear(image), "TIFF")
    yield "tiff, 16 bits, white is zero", lambda image: encoded(
        Image.fromarray(np.where(_grey(image) > 127, 0, 65535).astype(np.uint16)),
        "TIFF", tiffinfo={262: 0},
    )  # fmt: skip
    numbers: list[tuple[str, Any, float]] = [
        ("16 bits", np.uint16, 65535), ("16 bits, big-endian", ">u2", 65535),
        ("32 bits, 0..255", np.int32, 255), ("32 bits, 0..65535", np.int32, 65535),
        ("32 bits, large numbers", np.int32, 2**30), ("floating point, 0..1", np.float32, 1),
        ("floating point, 0..255", np.float32, 255), ("floating point, large", np.float32, 1e9),
    ]  # fmt: skip
    for name, dtype, most in numbers:
        yield (
            f"tiff, {name}",
            lambda image, dtype=dtype, most=most: encoded(_numbers(image, dtype, most), "TIFF"),
        )
    yield (
        "tiff, floating point from -1, with gaps",
        lambda image: encoded(Image.fromarray(_with_gaps(image)), "TIFF"),
    )


def _srgb_and_lab() -> tuple[Any, Any]:
    return ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")


def _numbers(image: Image.Image, dtype: Any, most: float) -> Image.Image:
    values = np.where(_grey(image) > 127, most, 0).astype(dtype)
    if values.dtype.byteorder == ">":
        return Image.frombytes("I;16B", image.size, values.tobytes())
    return Image.fromarray(values)


def _with_gaps(image: Image.Image) -> NDArray[np.float32]:
    values = np.where(_grey(image) > 127, 1, -1).astype(np.float32)
    values[0, 0], values[0, 1] = np.nan, np.inf
    return values


def _portable() -> Iterator[tuple[str, Maker]]:
    for mode in ("1", "L", "RGB"):
        yield f"ppm {mode}", saved("PPM", mode)
    yield "pgm 16 bits", lambda image: encoded(_numbers(image, np.int32, 65535), "PPM")
    yield "pfm", lambda image: encoded(_numbers(image, np.float32, 1), "PPM")
    for kind, count in (("P1", 1), ("P2", 1), ("P3", 3)):
        yield f"{kind} in text", lambda image, kind=kind, n=count: _in_text(image, kind, n)
    yield (
        "pgm of 100 levels",
        lambda image: (
            b"P5 64 64 100\n" + np.where(_grey(image) > 127, 100, 0).astype(np.uint8).tobytes()
        ),
    )
    yield (
        "ppm of 1,023 levels",
        lambda image: (
            b"P6 # comment\n64 64\n1023\n"
            + np.where(np.asarray(image) > 127, 1023, 0).astype(">u2").tobytes()
        ),
    )


def _in_text(image: Image.Image, kind: str, channels: int) -> bytes:
    is_white = (_grey(image) > 127).astype(int)
    values = 1 - is_white if kind == "P1" else 9 * is_white
    lines = [" ".join(" ".join([str(v)] * channels) for v in row) for row in values.tolist()]
    head = f"{kind}\n# by hand\n64 64\n" + ("" if kind == "P1" else "9\n")
    return (head + "\n".join(lines) + "\n").encode()


def _others() -> Iterator[tuple[str, Maker]]:
    for quality in (40, 90):
        yield f"avif {quality}", saved("AVIF", side=128, quality=quality)
    yield (
        "avif, transparent digit",
        lambda image: encoded(
            _clear(image.resize((128, 128), Image.Resampling.NEAREST)), "AVIF", quality=95
        ),
    )
    for mode in ("L", "RGB", "RGBA"):
        yield f"jpeg 2000 {mode}", saved("JPEG2000", mode)
    yield "jpeg 2000, lossy", saved("JPEG2000", side=128, irreversible=True)
    yield "jpeg 2000, code stream alone", saved("JPEG2000", no_jp2=True)
    yield "jpeg 2000, 16 bits", lambda image: encoded(_numbers(image, np.uint16, 65535), "JPEG2000")
    yield "jpeg 2000, tiles", saved("JPEG2000", side=128, tile_size=(32, 32))
    for mode in ("L", "P", "RGB", "RGBA", "LA"):
        yield f"tga {mode}", saved("TGA", mode)
    yield "tga, run lengths", saved("TGA", compression="tga_rle")
    for mode in ("1", "L", "P", "RGB"):
        yield f"pcx {mode}", saved("PCX", mode)
    for mode in ("L", "RGB", "RGBA"):
        yield f"sgi {mode}", saved("SGI", mode)
        yield f"dds {mode}", saved("DDS", mode)
    for kind in ("DXT1", "DXT5"):
        yield f"dds {kind}", saved("DDS", "RGBA", pixel_format=kind)
    yield "xbm", saved("XBM", "1")
    yield "msp", saved("MSP", "1")
    yield "spider", lambda image: encoded(_numbers(image, np.float32, 1), "SPIDER")


def _orientations() -> Iterator[tuple[str, Maker]]:
    for orientation in _STORED:
        for image_format, options in (
            ("JPEG", {"side": 128}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}),
        ):  # fmt: skip
            yield (
                f"{image_format.lower()}, orientation {orientation}",
                _turned(orientation, image_format, **options),
            )
    for orientation in (3, 6, 8):
        yield f"avif, orientation {orientation}", _turned(orientation, "AVIF", side=128, quality=90)
    yield "jpeg, orientation 99", _turned(1, "JPEG", stated=99, side=128)


def _turned(
    orientation: int, image_format: str, stated: int | None = None, side: int = 64, **options: Any
) -> Maker:
    def make(image: Image.Image) -> bytes:
        turn = _STORED[orientation]
        stored = image.resize((side, side), Image.Resampling.NEAREST)
        stored = stored if turn is None else stored.transpose(turn)
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = stated or orientation
        return encoded(stored, image_format, exif=exif, **options)

    return make


def _shapes() -> Iterator[tuple[str, Maker]]:
    for side in (8, 16, 48, 63, 65, 200, 333, 1000, 2048):
        resample = Image.Resampling.BOX if side < 64 else Image.Resampling.NEAREST
        yield (
            f"png of {side} pixels a side",
            lambda image, side=side, how=resample: encoded(image.resize((side, side), how), "PNG"),
        )
    for width, height in ((96, 64), (64, 96), (640, 64), (64, 640)):

        def framed(image: Image.Image, size=(width, height)) -> bytes:
            whole = Image.new("RGB", size)
            whole.paste(image, ((size[0] - 64) // 2, (size[1] - 64) // 2))
            return encoded(whole, "PNG")

        yield f"png of {width}×{height}, the digit in its middle", framed
    yield (
        "jpeg of 50 million pixels, grey",
        lambda image: encoded(
            image.convert("L").resize((7100, 7100), Image.Resampling.NEAREST), "JPEG", quality=60
        ),
    )
    yield (
        "png of 49 million pixels, two levels",
        lambda image: encoded(
            image.convert("1").resize((7000, 7000), Image.Resampling.NEAREST),
            "PNG",
            compress_level=1,
        ),
    )


def _profiles() -> Iterator[tuple[str, Maker]]:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for image_format, options in (("PNG", {}), ("JPEG", {"side": 128}), ("TIFF", {}),
                                  ("WEBP", {"lossless": True})):  # fmt: skip
        name = image_format.lower()
        yield f"{name}, sRGB profile", saved(image_format, icc_profile=srgb, **options)
        yield f"{name}, profile of another kind", saved(image_format, icc_profile=lab, **options)
    yield "png grey, profile of colour", saved("PNG", "L", icc_profile=srgb)


def _cut() -> Iterator[tuple[str, Maker]]:
    """Without their last bytes. At 640 pixels a side that is the black edge below the digit."""
    for count in (1, 2, 3, 5, 10, 40):
        yield (
            f"jpeg without its last {count} bytes",
            lambda image, count=count: saved("JPEG", side=640)(image)[:-count],
        )
        yield (
            f"progressive jpeg without its last {count} bytes",
            lambda image, count=count: saved("JPEG", side=640, progressive=True)(image)[:-count],
        )
    for count in (1, 4, 8, 12):
        yield (
            f"png without its last {count} bytes",
            lambda image, count=count: encoded(image, "PNG")[:-count],
        )
    yield "gif without its last byte", lambda image: encoded(image, "GIF")[:-1]


def _url(text: str, head: str = "data:image/png;base64,") -> str:
    return head + text


URLS: dict[str, Callable[[str], str]] = {
    "plain": _url,
    "in lines": lambda s: _url("\n".join(textwrap.wrap(s, 76)) + "\n"),
    "in lines of 64, CRLF": lambda s: _url("\r\n".join(textwrap.wrap(s, 64))),
    "spaces": lambda s: _url(" ".join(textwrap.wrap(s, 9))),
    "URL-safe": lambda s: _url(s.translate(str.maketrans("+/", "-_"))),
    "without padding": lambda s: _url(s.rstrip("=")),
    "percent signs": lambda s: _url(quote(s, safe="")),
    "BASE64": lambda s: _url(s, "data:image/png;BASE64,"),
    "capitals": lambda s: _url(s, "DATA:IMAGE/PNG;BASE64,"),
    "parameters": lambda s: _url(s, "data:image/png;name=a.png;base64,"),
    "no type": lambda s: _url(s, "data:;base64,"),
    "another type": lambda s: _url(s, "data:image/jpeg;base64,"),
    "any type": lambda s: _url(s, "data:application/octet-stream;base64,"),
    "image/*": lambda s: _url(s, "data:image/*;base64,"),
}
"""Forms of data URLs: base64 in, URL out."""


def base64_of(data: bytes) -> str:
    """Base64 in one line."""
    return base64.b64encode(data).decode()
