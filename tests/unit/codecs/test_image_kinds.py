"""Kinds of pictures: each comes out as a viewer shows it."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from vllm_dynin.processors.codecs.image_io import open_image, open_mask
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits


def encoded(image, image_format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def ramp(height=48, width=64):
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / (width - 1), 255 * y / (height - 1), 255 - 255 * x / (width - 1)]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def pixels(image):
    return np.asarray(image).astype(int)


# --- a JPEG without its last bytes ---


@pytest.mark.parametrize("is_progressive", [False, True])
def test_a_jpeg_without_its_end(is_progressive):
    data = encoded(ramp(256, 256), "JPEG", progressive=is_progressive)
    whole = pixels(open_image(data))
    assert np.array_equal(pixels(open_image(data[:-2])), whole)
    half = pixels(open_image(data[: len(data) * 2 // 3]))
    assert half.shape == whole.shape
    if not is_progressive:  # a progressive one is only less sharp
        assert np.array_equal(half[:64], whole[:64])
        assert (half[-8:] == 128).all()  # what is missing is grey, not black


def test_errors_of_a_jpeg_are_not_hidden():
    """Only the end may be missing: Pillow's LOAD_TRUNCATED_IMAGES would show a black picture."""
    data = encoded(ramp(), "JPEG")
    start = data.index(b"\xff\xc4")  # Huffman tables
    with pytest.raises(MediaError, match="damaged"):
        open_image(data[: start + 5] + b"\xff" * 16 + data[start + 21 :])


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_png_without_its_last_bytes(size):
    """All of its picture is there: only what says so is missing."""
    data = encoded(ramp())
    assert np.array_equal(pixels(open_image(data[:-size])), pixels(ramp()))


# --- damaged notes beside a good picture ---


def test_damaged_exif_and_profiles_are_passed_over():
    image = ramp()
    for image_format in ("PNG", "JPEG", "WEBP"):
        options = {"lossless": True} if image_format == "WEBP" else {}
        plain = pixels(open_image(encoded(image, image_format, **options)))
        for notes in (
            {"exif": b"Exif\0\0rubbish" * 9},
            {"exif": b"Exif\0\0II*\0\xff\xff\xff\xff"},
            {"icc_profile": b"rubbish" * 40},
        ):
            data = encoded(image, image_format, **options, **notes)
            assert np.array_equal(pixels(open_image(data)), plain), (image_format, notes)


def test_a_note_with_a_wrong_check_sum():
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    notes.add_text("comment", "hello")
    data = bytearray(encoded(ramp(), pnginfo=notes))
    data[data.index(b"hello")] ^= 1
    assert np.array_equal(pixels(open_image(bytes(data))), pixels(ramp()))


def test_a_damaged_list_of_further_pictures():
    stream = io.BytesIO()
    ramp().save(stream, "MPO", save_all=True, append_images=[ramp()])
    data = stream.getvalue()
    whole = pixels(open_image(data))
    at = data.index(b"MPF\0")
    assert np.array_equal(
        pixels(open_image(data[: at + 8] + b"\xff" * 30 + data[at + 38 :])), whole
    )


# --- colour ---


def swapped_profile():
    """A profile of its own kind: sRGB with red and blue exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = data.index(b"rXYZ"), data.index(b"bXYZ")
    data[red : red + 4], data[blue : blue + 4] = data[blue : blue + 4], data[red : red + 4]
    return bytes(data)


def test_colour_profiles():
    image = ramp()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for source in (image, image.convert("L"), image.convert("P")):
        data = encoded(source, icc_profile=srgb)
        assert np.array_equal(pixels(open_image(data)), pixels(open_image(encoded(source))))
    shown = pixels(open_image(encoded(image, icc_profile=swapped_profile())))
    assert np.abs(shown - pixels(image)[..., ::-1]).max() <= 3
    clear = image.convert("RGBA")
    clear.putalpha(Image.new("L", image.size, 0))
    assert (pixels(open_image(encoded(clear, icc_profile=swapped_profile()))) == 255).all()


def test_lab_and_ycbcr():
    image = ramp()
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    made = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    for source in (made, encoded(made, "TIFF")):
        assert np.abs(pixels(open_image(source)) - pixels(image)).mean() < 3
    ycbcr = image.convert("YCbCr")
    for source in (ycbcr, encoded(ycbcr, "TIFF")):
        assert np.abs(pixels(open_image(source)) - pixels(image)).max() <= 3


def test_16_bit_transparency():
    values = np.array([[0, 1000, 65535]], np.uint16)
    data = encoded(Image.fromarray(values), transparency=1000)
    assert pixels(open_image(data))[0, :, 0].tolist() == [0, 255, 255]


def test_white_is_zero_and_12_bits():
    """Scanners write these: 16 bits with 0 for white, and 12 bits."""
    values = np.array([[0, 32896, 65535]], np.uint16)
    inverted = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    assert pixels(open_image(inverted))[0, :, 0].tolist() == [255, 127, 0]


# --- large photographs ---


def test_large_jpegs_are_reduced_while_they_are_decoded():
    """A main camera's 50 million pixels."""
    image = ramp(128, 170).resize((8160, 6144))
    data = encoded(image, "JPEG")
    small = open_image(data)
    assert small.size == (4080, 3072)
    expected = image.reduce(2)
    assert np.abs(pixels(small) - pixels(expected)).max() <= 4


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16", "1"])
def test_others_are_reduced_in_strips(mode):
    limits = MediaLimits(max_pixels=1000)
    image = ramp(97, 101)
    exif = Image.Exif()
    exif[0x0112] = 6
    if mode == "RGBA":
        image.putalpha(image.getchannel("R"))
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    data = encoded(image, exif=exif)
    whole = open_image(data)
    assert whole.size == (97, 101)
    assert open_image(image, limits).size == (26, 25)
    small = open_image(data, limits)
    flat = whole.transpose(Image.Transpose.ROTATE_90).reduce(4)  # it is turned behind the reduction
    assert np.abs(pixels(small) - pixels(flat.transpose(Image.Transpose.ROTATE_270))).max() <= 1


def test_a_progressive_jpeg_of_too_much_memory():
    limits = MediaLimits(max_decode_bytes=10_000)
    data = encoded(ramp(), "JPEG", progressive=True, subsampling=0)
    with pytest.raises(MediaError, match="coefficients of a 64×48 progressive JPEG"):
        open_image(data, limits)


# --- masks ---


def brush(side=64):
    """A soft brush: strongest in the middle, nothing at the edge. 0..1."""
    y, x = np.mgrid[0:side, 0:side] - (side - 1) / 2
    return np.clip(1.4 - np.hypot(x, y) / side * 3, 0, 1)


@pytest.mark.parametrize("strength", [1.0, 0.6, 0.4])
def test_soft_masks(strength):
    marks = brush() * strength
    grey = Image.fromarray((marks * 255).astype(np.uint8))
    erased = ramp(64, 64).convert("RGBA")
    erased.putalpha(Image.fromarray((255 - marks * 255).astype(np.uint8)))
    wide = Image.fromarray((marks * 65535).astype(np.uint16))
    for mask in (grey, erased, wide, grey.convert("RGB")):
        for source in (mask, encoded(mask)):
            opened = open_mask(source)
            assert opened.mode == "L" and opened.getextrema()[1] == 255
            is_marked = np.asarray(opened) >= 128
            assert (is_marked == (brush() >= 0.5)).mean() > 0.99


def test_faint_marks_are_none():
    assert open_mask(Image.new("L", (8, 8), 8)).getextrema() == (8, 8)
    opaque = Image.new("RGBA", (8, 8), (255, 255, 255, 250))
    opaque.paste((0, 0, 0, 250), (0, 0, 4, 8))
    assert np.asarray(open_mask(opaque))[0].tolist() == [255 - 250 + 0] * 4 + [255] * 4


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA", "CMYK", "I;16", "F"])
def test_masks_of_every_mode(mode):
    mask = Image.new("L", (6, 4), 0)
    mask.paste(255, (0, 0, 3, 4))
    if mode == "I;16":
        mask = Image.fromarray(np.asarray(mask).astype(np.uint16) * 257)
    else:
        mask = mask.convert(mode)
    sources = [mask, encoded(mask, "TIFF" if mode in ("CMYK", "F") else "PNG")]
    for source in sources:
        assert np.asarray(open_mask(source))[0].tolist() == [255] * 3 + [0] * 3


@pytest.mark.parametrize("has_alpha", [False, True])
def test_orientation_of_masks(has_alpha):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    mask = Image.new("L", (3, 2), 0)
    mask.putpixel((0, 0), 255)
    if has_alpha:
        clear = Image.new("RGBA", mask.size, (9, 9, 9))
        clear.putalpha(ImageOps.invert(mask))
        mask = clear
    opened = open_mask(encoded(mask, exif=exif))
    assert opened.size == (2, 3)
    assert np.argwhere(np.asarray(opened) == 255).tolist() == [[0, 1]]
