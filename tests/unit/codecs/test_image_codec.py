import json

import numpy as np
import pytest
import torch
from PIL import Image

from vllm_dynin.processors.codecs import image as image_module
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.image_io import to_pixels
from vllm_dynin.processors.codecs.magvit import Magvit, MagvitConfig
from vllm_dynin.processors.codecs.patch_threshold import PatchThreshold, PatchThresholdConfig

# Two levels and no more blocks than needed, as small as the real graph gets.
SMALL = MagvitConfig(
    channels=8,
    encoder_multipliers=(1, 2),
    encoder_blocks=(1, 1),
    decoder_multipliers=(1, 2),
    decoder_blocks=(1, 1),
    norm_groups=4,
)


@pytest.fixture(scope="module")
def codec():
    return ImageCodec.from_config(SMALL, seed=3)


def noise(*size, seed=0):
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))


def test_shapes_types_and_ranges(codec):
    images = [noise(6, 10, seed=i) for i in range(3)]
    codes = codec.encode(images)
    assert codes.dtype == torch.int64 and codes.shape == (3, 3 * 5)
    assert codes.unique().numel() > 10 and codes.min() >= 0 and codes.max() < 8192
    decoded = codec.decode(codes, 6, 10)
    assert [(image.mode, image.size) for image in decoded] == [("RGB", (10, 6))] * 3
    pixels = codec.decode_pixels(codes, 6, 10)
    assert pixels.shape == (3, 3, 6, 10) and pixels.dtype == torch.float32


@pytest.mark.parametrize("seed", range(3))
def test_batch_equals_singles_bit_for_bit(codec, seed):
    images = [noise(8, 12, seed=10 * seed + i) for i in range(4)]
    together = codec.encode(images)
    assert torch.equal(together, torch.cat([codec.encode([image]) for image in images]))
    decoded = codec.decode_pixels(together, 8, 12)
    alone = [codec.decode_pixels(codes[None], 8, 12) for codes in together]
    assert torch.equal(decoded, torch.cat(alone))


def test_several_images_per_pass_give_the_same_latents(codec):
    wide = ImageCodec(codec.network, images_per_pass=3)
    pixels = to_pixels([noise(8, 12, seed=i) for i in range(5)])
    # float32 sums in another order
    assert torch.allclose(wide.latents(pixels), codec.latents(pixels), rtol=0, atol=1e-5)
    codes = torch.randint(0, 8192, (5, 24))
    a, b = wide.decode_pixels(codes, 8, 12), codec.decode_pixels(codes, 8, 12)
    assert torch.allclose(a, b, rtol=0, atol=1e-5)


def test_non_square_is_not_transposed(codec):
    """The two orientations of one number of codes give different images, each the right one."""
    codes = torch.randint(0, 8192, (1, 24))
    wide, tall = codec.decode(codes, 8, 12)[0], codec.decode(codes, 12, 8)[0]
    assert wide.size == (12, 8) and tall.size == (8, 12)
    patch = ImageCodec.from_config(PatchThresholdConfig(cell=1, cells=1))
    row = patch.decode(torch.tensor([[1, 0, 0, 1, 1, 0]]), 2, 3)[0]
    assert np.asarray(row)[..., 0].tolist() == [[255, 0, 0], [255, 255, 0]]
    assert patch.encode([row]).tolist() == [[1, 0, 0, 1, 1, 0]]


def test_resolution_scales_and_crops_first(codec):
    codes = codec.encode([noise(30, 50), noise(9, 7)], resolution=16)
    assert codes.shape == (2, 64)


def test_a_bfloat16_decoder_is_close_and_the_encoder_stays_float32(codec):
    half = ImageCodec(ImageCodec.from_config(SMALL, seed=3).network, decoder_dtype=torch.bfloat16)
    assert {p.dtype for p in half.network.encoder.parameters()} == {torch.float32}
    assert {p.dtype for p in half.network.decoder.parameters()} == {torch.bfloat16}
    codes = torch.randint(0, 8192, (2, 24), generator=torch.Generator().manual_seed(0))
    full = codec.decode_pixels(codes, 8, 12)
    low = half.decode_pixels(codes, 8, 12)
    assert low.dtype == torch.float32
    # 8 bits of mantissa through some 10 layers
    assert 0 < (full - low).abs().max() < 0.05 * full.abs().max()
    with pytest.raises(ValueError, match=r"float16 must be torch\.float32 or bfloat16"):
        ImageCodec(codec.network, decoder_dtype=torch.float16)
    with pytest.raises(ValueError, match="images_per_pass=0"):
        ImageCodec(codec.network, images_per_pass=0)


KNOBS = {
    "cuda.matmul": torch.backends.cuda.matmul,
    "cudnn.conv": torch.backends.cudnn.conv,
    "mkldnn.matmul": torch.backends.mkldnn.matmul,
    "mkldnn.conv": torch.backends.mkldnn.conv,
}


def test_reduced_float32_is_off_in_the_encoder_only_and_restored(codec, monkeypatch):
    before = {name: knob.fp32_precision for name, knob in KNOBS.items()}
    seen = []
    encoder, decoder = codec.network.encoder, codec.network.decoder

    def record(module, arguments, output):
        autocast = torch.is_autocast_enabled("cpu")
        seen.append(({knob.fp32_precision for knob in KNOBS.values()}, autocast))

    handles = [encoder.register_forward_hook(record), decoder.register_forward_hook(record)]
    try:
        for knob in (KNOBS["cudnn.conv"], KNOBS["mkldnn.conv"]):
            knob.fp32_precision = "tf32"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            codes = codec.encode([noise(4, 4)])
            codec.decode(codes, 4, 4)
        assert seen[0] == ({"ieee"}, False)
        assert "tf32" in seen[1][0] and seen[1][1]
        assert KNOBS["cudnn.conv"].fp32_precision == KNOBS["mkldnn.conv"].fp32_precision == "tf32"
        # also after an error inside
        monkeypatch.setattr(encoder, "forward", None)
        with pytest.raises(TypeError):
            codec.encode([noise(4, 4)])
        assert KNOBS["cudnn.conv"].fp32_precision == "tf32"
    finally:
        for handle in handles:
            handle.remove()
        for name, knob in KNOBS.items():
            knob.fp32_precision = before[name]


def test_float32_parameters_under_a_bfloat16_default(tmp_path, codec):
    codec.save_pretrained(tmp_path)
    torch.set_default_dtype(torch.bfloat16)
    try:
        loaded = ImageCodec.from_pretrained(tmp_path)
        assert {p.dtype for p in loaded.network.parameters()} == {torch.float32}
        # and the data path: pixels and signs must not pick up the default either
        codes = loaded.encode([noise(8, 8)])
        pixels = loaded.decode_pixels(codes, 8, 8)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(codes, codec.encode([noise(8, 8)]))
    assert torch.equal(pixels, codec.decode_pixels(codes, 8, 8))


@pytest.mark.parametrize(
    "config", [SMALL, PatchThresholdConfig(), PatchThresholdConfig(cell=2, cells=2, channels=3)]
)
def test_save_and_load(tmp_path, config):
    codec = ImageCodec.from_config(config, seed=1)
    codec.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = ImageCodec.from_pretrained(str(tmp_path))
    assert loaded.network.config == config
    for name, tensor in codec.network.state_dict().items():
        assert torch.equal(tensor, loaded.network.state_dict()[name])
    images = [noise(4 * codec.patch, 2 * codec.patch)]
    assert torch.equal(codec.encode(images), loaded.encode(images))


def test_fitted_levels_are_saved(tmp_path):
    codec = ImageCodec.from_config(PatchThresholdConfig(cell=4, cells=2))
    codec.network.fit(to_pixels([noise(64, 64)]))
    codec.save_pretrained(tmp_path)
    levels = ImageCodec.from_pretrained(tmp_path).network.decoder.levels
    assert torch.equal(levels, codec.network.decoder.levels)
    assert levels.flatten().tolist() != [-1, 1]


def test_a_config_without_our_field_means_the_published_network(tmp_path, monkeypatch):
    """The published config.json has no architecture field; a real load is 382 MB, so the network
    is replaced by its outline and the refusal must name the published tensors."""
    (tmp_path / "config.json").write_text('{"_class_name": "MAGVITv2"}')
    ImageCodec.from_config(SMALL).save_pretrained(tmp_path / "small")
    (tmp_path / "small" / "model.safetensors").rename(tmp_path / "pytorch_model.safetensors")
    built = []

    def outline(config):
        built.append(config)
        with torch.device("meta"):
            return Magvit(config)

    monkeypatch.setattr(image_module, "_build", outline)
    with pytest.raises(ValueError, match=r"missing: \d+ .*instead of \(128, 3, 3, 3\)"):
        ImageCodec.from_pretrained(tmp_path)
    assert built == [MagvitConfig()]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_codec": "vqgan"}, "'vqgan' is unknown; known are magvit, patch_threshold"),
        ({"image_codec": "magvit", "width": 3}, "does not describe a magvit"),
        ({"image_codec": "magvit", "channels": 30}, "norm_groups=32 must divide channels=30"),
        ({"image_codec": "patch_threshold", "cell": 0}, "cell and cells must be positive"),
        ({"image_codec": "magvit", "channels": "8"}, "does not describe a magvit"),
    ],
)
def test_wrong_configs(tmp_path, config, message):
    ImageCodec.from_config(SMALL).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        ImageCodec.from_pretrained(tmp_path)


def test_patch_levels_that_break_the_round_trip_are_refused(tmp_path):
    codec = ImageCodec.from_config(PatchThresholdConfig())
    for levels in ([[0.0], [1.0]], [[-1.0], [-0.06]], [[-1.1], [1.0]], [[float("nan")], [1.0]]):
        codec.network.decoder.levels.copy_(torch.tensor(levels))
        codec.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="on both sides of the threshold"):
            ImageCodec.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="on both sides"):  # nothing bright to learn from
        ImageCodec.from_config(PatchThresholdConfig()).network.fit(torch.full((1, 3, 16, 16), -1.0))


def test_random_weights_are_seeded_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = (ImageCodec.from_config(SMALL, seed=s) for s in (0, 0, 1))
    assert torch.rand(1) == expected
    weights = [codec.network.encoder.conv_in.weight for codec in (a, b, c)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("codes", "size", "message"),
    [
        (torch.zeros(1, 16), (8, 8), r"torch\.float32 \[1, 16\]"),
        (torch.zeros(1, 16, dtype=torch.bool), (8, 8), "need integers"),
        (torch.zeros(16, dtype=torch.long), (8, 8), r"shape \[B, 16\]"),
        (torch.zeros(1, 15, dtype=torch.long), (8, 8), r"\[1, 15\]"),
        (torch.zeros(0, 16, dtype=torch.long), (8, 8), "batch of 0"),
        (torch.full((1, 16), 8192), (8, 8), r"codes span 8192\.\.8192; .* 0\.\.8191"),
        (torch.full((1, 16), -1), (8, 8), "codes span -1"),
        (torch.zeros(1, 16, dtype=torch.long), (8, 7), "width=7, height=8"),
        (torch.zeros(1, 0, dtype=torch.long), (0, 8), "height=0"),
        (torch.zeros(1, 16, dtype=torch.long), (-8, -8), "height=-8"),
    ],
)
def test_bad_codes(codec, codes, size, message):
    with pytest.raises(ValueError, match=message):
        codec.decode(codes, *size)


def test_other_integer_types_are_fine(codec):
    codes = torch.randint(0, 8192, (1, 16))
    expected = codec.decode_pixels(codes, 8, 8)
    assert torch.equal(codec.decode_pixels(codes.to(torch.int32), 8, 8), expected)


@pytest.mark.parametrize(
    ("images", "resolution", "message"),
    [
        ([], None, "got none"),
        ([noise(8, 8), noise(8, 10)], None, "one size"),
        ([noise(8, 8).convert("L")], None, "RGB"),
        ([noise(8, 9)], None, "width=9, height=8: both must be positive multiples of 2"),
        ([noise(8, 8)], 9, "multiples of 2"),
        ([noise(8, 8)], 0, "positive multiples"),
    ],
)
def test_bad_images(codec, images, resolution, message):
    with pytest.raises(ValueError, match=message):
        codec.encode(images, resolution)


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(1, 1, 8, 8),
        torch.zeros(0, 3, 8, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 3, 8, 0),
    ],
)
def test_bad_pixels(codec, pixels):
    with pytest.raises(ValueError):
        codec.encode_pixels(pixels)


def test_nan_pixels_give_a_result_not_a_crash(codec):
    codes = codec.encode_pixels(torch.full((1, 3, 8, 8), float("nan")))
    assert codes.tolist() == [[0] * 16]


def test_networks_are_frozen(codec):
    assert not any(p.requires_grad for p in codec.network.parameters())
    assert not codec.network.training
    assert isinstance(ImageCodec.from_config(PatchThresholdConfig()).network, PatchThreshold)
