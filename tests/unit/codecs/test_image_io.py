"""Image input: preprocessing against a second statement, and a table of hostile files."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from vllm_dynin.processors.codecs.image_io import (
    open_image,
    resize_and_crop,
    to_images,
    to_pixels,
)
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits


def encoded(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def noise(height, width, seed=0):
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def gradient(height, width):
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), 128 + 0 * x]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


# --- preprocessing (decoding specification §4.1 and its vectors in §6) ---


@pytest.mark.parametrize(
    ("size", "resolution", "resized", "offset"),
    [
        ((640, 480), 336, (448, 336), (56, 0)),
        ((1000, 333), 336, (1009, 336), (336, 0)),  # 336.5 rounds half to even
        ((480, 640), 336, (336, 448), (0, 56)),
        ((336, 336), 336, (336, 336), (0, 0)),
        ((1, 1), 336, (336, 336), (0, 0)),
        ((675, 336), 336, (675, 336), (170, 0)),  # 169.5 rounds to 170
    ],
)
def test_resize_and_crop_sizes(size, resolution, resized, offset, monkeypatch):
    seen = {}
    original_resize, original_crop = Image.Image.resize, Image.Image.crop

    def resize(image, target, *arguments, **options):
        seen["resized"], seen["filter"] = target, arguments[0]
        return original_resize(image, target, *arguments, **options)

    def crop(image, box):
        seen["box"] = box
        return original_crop(image, box)

    monkeypatch.setattr(Image.Image, "resize", resize)
    monkeypatch.setattr(Image.Image, "crop", crop)
    result = resize_and_crop(gradient(size[1], size[0]), resolution, resolution)
    assert seen["resized"] == resized and seen["filter"] == Image.Resampling.BICUBIC
    assert seen["box"][:2] == offset
    assert result.size == (resolution, resolution)


def test_resize_and_crop_against_the_formula_in_floats():
    """The original computes int(resolution * long / short) in floats; ours is in integers."""
    generator = np.random.default_rng(0)
    for width, height, resolution in generator.integers(1, 3000, (2000, 3)).tolist():
        short, long = sorted((width, height))
        expected = int(resolution * long / short)
        ours = resolution * long // short
        assert ours == expected
        for size in (width, height):
            offset = (size - resolution) / 2
            assert round(offset) == math.floor(offset + 0.5) or offset % 1 == 0.5


@pytest.mark.parametrize("target", [(16, 48), (48, 16), (32, 32), (16, 16), (160, 32)])
@pytest.mark.parametrize("source", [(20, 30), (30, 20), (7, 90), (64, 64)])
def test_any_target_shape_is_covered(source, target):
    result = resize_and_crop(gradient(*source), *target)
    assert result.size == (target[1], target[0])
    # centred: the middle of a linear ramp stays in the middle
    middle = np.asarray(result, dtype=float).mean((0, 1))
    assert abs(middle[0] - 127) < 4 and abs(middle[1] - 127) < 4


def test_resize_is_antialiased():
    """A fine checkerboard becomes grey, not black or white as with a filter of fixed width."""
    board = np.indices((512, 512)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(board[..., None], 3, 2).astype(np.uint8))
    small = np.asarray(resize_and_crop(image, 32, 32))
    assert small.min() >= 120 and small.max() <= 135


@pytest.mark.parametrize("target", [(0, 16), (16, -1)])
def test_resize_to_nothing_is_refused(target):
    with pytest.raises(ValueError, match="must be positive"):
        resize_and_crop(noise(4, 4), *target)


def test_pixels_are_normalised_as_the_original_does():
    image = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    pixels = to_pixels([image])
    assert pixels.dtype == torch.float32 and pixels.shape == (1, 3, 16, 16)
    for value in range(256):
        single = np.float32(np.float32(value) / np.float32(255))
        expected = np.float32((single - np.float32(0.5)) / np.float32(0.5))
        assert pixels[0, 0].flatten()[value].item() == expected
    assert pixels.min() == -1 and pixels.max() == 1


def test_channels_and_axes_are_in_order():
    array = np.zeros((2, 3, 3), np.uint8)
    array[1, 2] = (255, 0, 51)
    pixels = to_pixels([Image.fromarray(array)])
    assert pixels[0, :, 1, 2].tolist() == pytest.approx([1, -1, -0.6])
    array[1, 2] = (255, 0, 50)  # cut off: 51 comes back as 50.99…
    assert np.array_equal(np.asarray(to_images(pixels)[0]), array)


def test_output_is_clamped_and_truncated_not_rounded():
    values = torch.tensor([-9.0, -1.0, 0.0, 0.999, 1.0, 9.0, 2 * 100.9 / 255 - 1])
    pixels = values.view(1, 1, 1, -1).expand(1, 3, 1, -1)
    image = to_images(pixels)[0]
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 127, 254, 255, 255, 100]


def test_output_takes_bfloat16():
    assert to_images(torch.ones(1, 3, 2, 2, dtype=torch.bfloat16))[0].getpixel((0, 0)) == (255,) * 3


# --- kinds of images: the right result ---


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    image = noise(5, 7)
    data = encoded(image)
    (tmp_path / "a.jpg").write_bytes(data)  # wrong extension: the content counts
    for source in (
        data,
        bytearray(data),
        io.BytesIO(data),
        tmp_path / "a.jpg",
        str(tmp_path / "a.jpg"),
        image,
        np.asarray(image),
    ):
        opened = open_image(source)
        assert opened.mode == "RGB" and np.array_equal(np.asarray(opened), np.asarray(image))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "AVIF"])
def test_formats(format):
    image = gradient(24, 32)
    opened = open_image(encoded(image, format))
    assert opened.size == (32, 24)
    difference = np.abs(np.asarray(opened, int) - np.asarray(image, int))
    assert difference.mean() < (8 if format in ("JPEG", "WEBP", "AVIF") else 0.01)


def grey16(format="PNG"):
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    return encoded(Image.fromarray(values), format)


def test_16_bit_grey_is_scaled_not_clipped():
    for format in ("PNG", "TIFF"):
        opened = np.asarray(open_image(grey16(format)))
        assert opened[..., 0].flatten().tolist() == list(range(256))


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (np.array([[0, 65535]], np.int32), [0, 255]),  # 16 bits in 32
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),  # 8 bits in 32
        (np.array([[-10, 0, 10]], np.int32), [0, 128, 255]),  # from the least to the greatest
        (np.array([[0, 65536 * 128, 65536 * 256]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.float32), [0, 100, 255]),
        (np.array([[0, 257, 65535]], np.float32), [0, 1, 255]),
        (np.array([[-1, 0, 3]], np.float32), [0, 64, 255]),
        (np.array([[np.nan, 0, 1, -np.inf]], np.float32), [0, 0, 255, 0]),
        (np.full((1, 3), 7e9, np.float32), [0, 0, 0]),
    ],
)
def test_integers_and_floats_without_a_stated_range(values, shown):
    for source in (encoded(Image.fromarray(values), "TIFF"), Image.fromarray(values)):
        assert np.asarray(open_image(source))[0, :, 0].tolist() == shown


def test_transparency_is_laid_on_white():
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    assert [open_image(encoded(rgba)).getpixel((x, 0)) for x in (0, 1)] == [
        (255, 0, 0),
        (255, 255, 255),
    ]
    grey = Image.new("LA", (1, 1), (0, 128))
    assert open_image(encoded(grey)).getpixel((0, 0)) == (127,) * 3
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    opened = open_image(encoded(palette, transparency=0))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]


def test_cmyk_bilevel_and_palette():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = open_image(encoded(cmyk, "JPEG", quality=95)).getpixel((4, 4))
    assert red[0] > 240 and max(red[1:]) < 15
    bilevel = Image.new("1", (2, 1))
    bilevel.putpixel((1, 0), 1)
    opened = open_image(encoded(bilevel))
    assert [opened.getpixel((x, 0))[0] for x in (0, 1)] == [0, 255]


def test_animated_images_give_the_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert open_image(data).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encoded(image, exif=exif))
    corner = {
        1: ((3, 2), (0, 0)),
        2: ((3, 2), (2, 0)),
        3: ((3, 2), (2, 1)),
        4: ((3, 2), (0, 1)),
        5: ((2, 3), (0, 0)),
        6: ((2, 3), (1, 0)),
        7: ((2, 3), (1, 2)),
        8: ((2, 3), (0, 2)),
    }[orientation]
    assert opened.size == corner[0]
    assert np.argwhere(np.asarray(opened)[..., 0])[0].tolist() == list(corner[1][::-1])


def test_one_pixel_becomes_a_flat_image():
    result = resize_and_crop(open_image(encoded(Image.new("RGB", (1, 1), (9, 99, 199)))), 32, 48)
    assert set(result.get_flattened_data()) == {(9, 99, 199)}


# --- hostile files: a clear error ---


def chunk(kind, payload):
    check = zlib.crc32(kind + payload)
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", check)


def png_claiming(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def hostile():
    jpeg, png = encoded(noise(64, 64), "JPEG"), encoded(noise(64, 64))
    yield "empty", b"", "empty"
    yield "text", b"hello, this is no image" * 10, "not a readable image"
    yield "html behind a png name", b"<html><body>" + bytes(100), "not a readable image"
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a readable image"
    yield (
        "eps, which would start an interpreter",
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"),
        "not a readable image",
    )
    yield "jpeg without its picture", jpeg[: jpeg.index(b"\xff\xda") + 14], "header of a JPEG"
    yield "truncated png", png[: len(png) // 2], "damaged"
    yield "png header only", png[:33], "not a readable image"
    yield "png signature only", png[:8], "not a readable image"
    yield "wrong checksum", png[:20] + b"\xff" + png[21:], "not a readable image|damaged|max_pixels"
    yield "bomb, Pillow's own limit", png_claiming(60_000, 60_000), "limit"
    yield "bomb, our limit", png_claiming(16_000, 16_000), r"2\.56e\+08, over the .* max_source_"
    yield "bomb, small enough to be reduced", png_claiming(8_000, 8_000), "damaged"
    yield "heic", b"\0\0\0\x18ftypheic" + bytes(100), "HEIC.*JPEG"
    yield "bomb, 2 billion wide", png_claiming(2**31 - 1, 1), "limit"
    yield "less data than claimed", png_claiming(500, 500), "damaged"
    yield "zero width", png_claiming(0, 10), "no pixels|not a readable|damaged"
    yield "20,000×1", encoded(Image.new("RGB", (20_000, 1))), "aspect ratio of a 20000×1 image"
    yield "1×20,000", encoded(Image.new("RGB", (1, 20_000))), "aspect ratio of a 1×20000 image"
    bmp = bytearray(encoded(noise(4, 4), "BMP"))
    bmp[18:26] = struct.pack("<ii", 5000, -5000)
    yield "bmp claiming more than it holds", bytes(bmp), "damaged"


CASES = list(hostile())


@pytest.mark.parametrize(("data", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_hostile_files_are_refused(data, message):
    with pytest.raises(MediaError, match=message):
        open_image(data)


def test_limits_apply_to_every_kind_of_source():
    limits = MediaLimits(max_source_pixels=100)
    image = noise(10, 11)
    for source in (image, np.asarray(image), encoded(image)):
        with pytest.raises(MediaError, match="110, over the limit max_source_pixels=100"):
            open_image(source, limits)
    assert open_image(noise(10, 10), limits).size == (10, 10)
    with pytest.raises(MediaError, match="max_bytes"):
        open_image(encoded(image), MediaLimits(max_bytes=50))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.full((4, 4, 3), np.nan),
    ],
)
def test_arrays_that_are_no_images(array):
    with pytest.raises(MediaError, match=r"must be uint8 \[height, width, 3\]"):
        open_image(array)


def test_the_aspect_limit_bounds_the_intermediate_image():
    """At the limit, 512 pixels need an intermediate of 512 × 51,200, not of billions."""
    opened = open_image(Image.new("RGB", (100, 1)))
    assert resize_and_crop(opened, 512, 512).size == (512, 512)
    with pytest.raises(MediaError, match="aspect"):
        open_image(Image.new("RGB", (101, 1)))
