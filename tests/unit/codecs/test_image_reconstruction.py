"""The toy codecs on real images: handwritten digits, and photographs neither was made from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vllm_dynin
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.image_io import open_image, to_pixels
from vllm_dynin.processors.codecs.magvit import MagvitConfig
from vllm_dynin.processors.codecs.patch_threshold import PatchThresholdConfig
from vllm_dynin.training_ext.codecs.train_image import TrainConfig, main, psnr, train

skimage_data = pytest.importorskip("skimage.data", reason="scikit-image holds the photographs")
datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn holds the digits")

TINY = Path(vllm_dynin.__file__).parent / "assets" / "tiny-magvit"


def photographs():
    """The middle 256×256 of pictures the tiny codec was not trained on."""
    china, flower = datasets.load_sample_images().images
    arrays = {"astronaut": skimage_data.astronaut(), "china": china, "flower": flower}
    for name, array in arrays.items():
        image = Image.fromarray(array)
        left, top = (image.width - 256) // 2, (image.height - 256) // 2
        yield name, image.crop((left, top, left + 256, top + 256))


PHOTOGRAPHS = dict(photographs())


@pytest.fixture(scope="module")
def tiny():
    return ImageCodec.from_pretrained(TINY)


# --- digits and the patch codec ---


def digits():
    """1,797 real digits, 8×8 with values 0..16, enlarged to one 8×8 cell a pixel."""
    values = datasets.load_digits().images
    images = [
        Image.fromarray(np.round(value / 16 * 255).astype(np.uint8).repeat(8, 0).repeat(8, 1))
        for value in values
    ]
    return values, [image.convert("RGB") for image in images]


def cells(image):
    return np.asarray(image)[4::8, 4::8, 0] / 255 * 16


def test_digits_are_16_codes_that_give_back_the_thresholded_digit():
    values, images = digits()
    codec = ImageCodec.from_config(PatchThresholdConfig())
    codes = codec.encode(images)
    assert codes.shape == (1797, 16) and codec.num_codes == 16
    decoded = codec.decode(codes, 64, 64)
    for value, image in zip(values, decoded, strict=True):
        assert np.array_equal(cells(image), np.where(value > 7, 16, 0))
    error = np.mean([np.abs(cells(i) - v).mean() for i, v in zip(decoded, values, strict=True)])
    # 1.68 of 16 measured; an empty image gives the mean grey, 4.88
    assert error < 1.7
    # invertible on two-level images: nothing is lost the second time
    assert torch.equal(codec.encode(decoded), codes)


@pytest.mark.parametrize(
    "config", [PatchThresholdConfig(cell=4), PatchThresholdConfig(cell=2, cells=2, channels=3)]
)
@pytest.mark.parametrize("is_fitted", [False, True])
def test_every_code_survives_the_way_through_an_8_bit_image(config, is_fitted):
    codec = ImageCodec.from_config(config)
    if is_fitted:
        codec.network.fit(to_pixels([PHOTOGRAPHS["astronaut"]]))
    codes = torch.arange(codec.num_codes).view(1, -1)
    side = int(codec.num_codes**0.5) * codec.patch
    assert torch.equal(codec.encode(codec.decode(codes, side, side)), codes)


def test_fitting_the_levels_lowers_the_error_on_photographs():
    """Squared error is least at the means; the default levels are black and white."""
    codec = ImageCodec.from_config(PatchThresholdConfig(cell=2, cells=2, channels=3))
    image = PHOTOGRAPHS["astronaut"]
    before = psnr(image, codec.decode(codec.encode([image]), image.height, image.width)[0])
    codec.network.fit(to_pixels([image]))
    after = psnr(image, codec.decode(codec.encode([image]), image.height, image.width)[0])
    assert after > before + 3  # 11.7 and 16.7 dB measured
    assert after > 15


# --- photographs and the tiny MAGVIT ---

FLOORS = {"astronaut": 20.6, "china": 18.4, "flower": 20.3}  # 20.87, 18.67, 20.59 dB measured


@pytest.mark.parametrize("name", FLOORS)
def test_unseen_photographs(tiny, name):
    image = PHOTOGRAPHS[name]
    codes = tiny.encode([image])
    decoded = tiny.decode(codes, image.height, image.width)[0]
    flat = Image.fromarray(np.full_like(np.asarray(image), np.asarray(image).mean((0, 1))))
    assert psnr(image, decoded) > FLOORS[name]
    assert psnr(image, decoded) > psnr(image, flat) + 7
    assert codes.unique().numel() > 500  # the codebook is in use
    # what is lost is lost the first time: the second passage changes little and keeps many codes
    again = tiny.encode([decoded])
    assert psnr(decoded, tiny.decode(again, image.height, image.width)[0]) > 26  # 27.6 at least
    assert (again == codes).float().mean() > 0.4  # 0.47 at least


def test_codes_matter_one_by_one(tiny):
    """Another code in one place changes the picture there, most where the code lies."""
    image = PHOTOGRAPHS["astronaut"].crop((96, 96, 160, 160))
    codes = tiny.encode([image])
    changed = codes.clone()
    changed[0, 16 * 8 + 8] ^= 0b1010101010101
    before, after = (tiny.decode_pixels(c, 64, 64)[0] for c in (codes, changed))
    difference = (before - after).abs().mean(0)
    assert difference[28:40, 28:40].mean() > 5 * difference[:12].mean()


def test_encoding_is_deterministic(tiny):
    image = PHOTOGRAPHS["flower"].crop((0, 0, 96, 64))
    assert torch.equal(tiny.encode([image]), tiny.encode([image]))


# --- training ---

SMALL = MagvitConfig(
    channels=8,
    encoder_multipliers=(1, 2),
    encoder_blocks=(1, 1),
    decoder_multipliers=(1, 2),
    decoder_blocks=(1, 1),
    norm_groups=1,
)


def test_training_learns_and_is_reproducible():
    images = list(PHOTOGRAPHS.values())
    judged = [image.crop((64, 64, 192, 192)) for image in images]

    def quality(steps):
        config = TrainConfig(steps=steps, crop=16, learning_rate=2e-3)
        codec = ImageCodec(train(images, SMALL, config))
        decoded = codec.decode(codec.encode(judged), 128, 128)
        return [psnr(i, d) for i, d in zip(judged, decoded, strict=True)]

    torch.manual_seed(123)
    expected = torch.rand(1)
    torch.manual_seed(123)
    first, trained, again = quality(5), quality(150), quality(5)
    assert torch.rand(1) == expected  # the caller's generator is left alone
    assert first == again
    assert min(trained) > max(first) + 2  # 15.7 and 11.5 dB measured


def test_training_command_writes_a_checkpoint_that_loads(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    PHOTOGRAPHS["flower"].save(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "notes.txt").write_text("not a picture")
    main([str(tmp_path / "pictures"), str(tmp_path / "out"), "--steps", "4"])
    assert "1 pictures; left out as no pictures: notes.txt" in capsys.readouterr().out
    codec = ImageCodec.from_pretrained(tmp_path / "out")
    assert codec.network.config == MagvitConfig.toy() and codec.num_codes == 8192
    assert {p.dtype for p in codec.network.parameters()} == {torch.float32}


def test_training_needs_pictures_that_are_large_enough():
    for images in ([], [Image.new("RGB", (31, 100))]):
        with pytest.raises(ValueError, match="at least 32×32"):
            train(images, SMALL, TrainConfig(steps=2))
    with pytest.raises(ValueError, match="multiple of the patch 2"):
        train([Image.new("RGB", (64, 64))], SMALL, TrainConfig(steps=2, crop=33))
    with pytest.raises(ValueError, match="must be positive"):
        TrainConfig(steps=0)


def test_photographs_through_files(tmp_path):
    """From a JPEG on disk to codes and back, as serving does it."""
    codec = ImageCodec.from_pretrained(TINY)
    PHOTOGRAPHS["china"].save(tmp_path / "a.jpg", quality=95)
    codes = codec.encode([open_image(tmp_path / "a.jpg")], resolution=112)
    assert codes.shape == (1, 28 * 28)
    assert codec.decode(codes, 112, 112)[0].size == (112, 112)
