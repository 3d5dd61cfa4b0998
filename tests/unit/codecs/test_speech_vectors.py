"""Vectors that can be worked out by hand (section 7.1 of the tokenizer specification)."""

import itertools
import math

import pytest
import torch

from vllm_dynin.processors.codecs.speech import collapse
from vllm_dynin.processors.codecs.speech_features import LogMel, LogMelConfig, mel_matrix
from vllm_dynin.processors.codecs.speech_to_units import (
    SpeechToUnitsConfig,
    fsq_digits,
    fsq_index,
    fsq_unpack,
)
from vllm_dynin.processors.codecs.spiral import ConvNormAct
from vllm_dynin.processors.codecs.units_to_speech import (
    PriorFlow,
    UnitsToSpeech,
    UnitsToSpeechConfig,
)
from vllm_dynin.processors.codecs.vits_generator import Generator, GeneratorConfig
from vllm_dynin.processors.codecs.vits_layers import inverse_spline

LEVELS = (8, 8, 8, 8)
DIGITS = {
    0: (0, 0, 0, 0),
    1: (1, 0, 0, 0),
    7: (7, 0, 0, 0),
    8: (0, 1, 0, 0),
    63: (7, 7, 0, 0),
    64: (0, 0, 1, 0),
    511: (7, 7, 7, 0),
    512: (0, 0, 0, 1),
    585: (1, 1, 1, 1),
    1234: (2, 2, 3, 2),
    2340: (4, 4, 4, 4),
    4095: (7, 7, 7, 7),
}


@pytest.mark.parametrize("unit, digits", DIGITS.items())
def test_fsq_digits_of_units(unit, digits):
    assert fsq_index(torch.tensor(digits), LEVELS).item() == unit
    assert tuple(fsq_unpack(torch.tensor(unit), LEVELS).tolist()) == digits


def test_fsq_packs_all_units_as_plain_python_does():
    units = torch.arange(4096)
    digits = fsq_unpack(units, LEVELS)
    # itertools.product counts its last place fastest; ours is the first.
    expected = [list(reversed(places)) for places in itertools.product(range(8), repeat=4)]
    assert digits.tolist() == expected
    assert torch.equal(fsq_index(digits, LEVELS), units)


@pytest.mark.parametrize(
    "z, unit",
    [
        ((0, 0, 0, 0), 2340),
        ((10, 10, 10, 10), 4095),
        ((-10, -10, -10, -10), 0),
        ((10, -10, -10, -10), 7),
        ((-10, 10, -10, -10), 56),
        ((0.3, -0.3, 1.0, -1.0), 925),
        ((1e30, -1e30, 0, 0), 7 + 64 * 4 + 512 * 4),
    ],
)
def test_fsq_units_of_latents(z, unit):
    assert fsq_index(fsq_digits(torch.tensor(z, dtype=torch.float32), LEVELS), LEVELS) == unit


@pytest.mark.parametrize(
    "z, digit",
    [
        *[(-1.43, 0), (-1.42, 1), (-0.80, 1), (-0.79, 2), (-0.44, 2), (-0.43, 3), (-0.15, 3)],
        *[(-0.14, 4), (0.15, 4), (0.16, 5), (0.50, 5), (0.51, 6), (1.14, 6), (1.15, 7)],
    ],
)
def test_fsq_digit_of_a_scalar(z, digit):
    assert fsq_digits(torch.tensor([z] * 4), LEVELS).tolist() == [digit] * 4


def test_fsq_shift_is_tan_not_atanh():
    half = 7 * (1 - 1e-3) / 2
    assert half == pytest.approx(3.4965)
    assert math.tan(0.5 / half) == pytest.approx(0.14398292, abs=1e-8)
    # At z = -shift the tanh is 0 and the bounded value exactly -0.5, which rounds half to even: 0.
    z = torch.tensor([-math.tan(0.5 / half)] * 4, dtype=torch.float64)
    assert fsq_digits(z, LEVELS).tolist() == [4] * 4
    assert fsq_digits(z - 1e-9, LEVELS).tolist() == [3] * 4
    # With atanh the threshold would lie 4.1e-6 lower, and this would be a 4.
    assert math.atanh(0.5 / half) - math.tan(0.5 / half) == pytest.approx(4.1e-6, abs=1e-8)
    assert fsq_digits(z - 3e-6, LEVELS).tolist() == [3] * 4


@pytest.mark.parametrize(
    "num_samples, length, padded, units",
    [
        (480, 3, 16, 1),
        (15999, 100, 112, 25),
        (16000, 100, 112, 25),
        (16001, 101, 112, 26),
        (52800, 330, 336, 83),
    ],
)
def test_lengths(num_samples, length, padded, units):
    features, valid = LogMel(LogMelConfig())(torch.sin(torch.arange(num_samples) * 0.1))
    assert (valid, features.shape) == (length, (128, padded))
    assert not features[:, length:].any()
    assert features[:, :length].mean(1).abs().max() < 1e-4
    assert math.ceil(num_samples / SpeechToUnitsConfig().samples_per_unit) == units


@pytest.mark.parametrize("num_samples", [0, 1, 399])
def test_too_short(num_samples):
    with pytest.raises(ValueError, match="at least 400 samples"):
        LogMel(LogMelConfig())(torch.zeros(num_samples))


@pytest.mark.parametrize("tap, first", [(0, -1), (1, 0), (4, 3)])
@pytest.mark.parametrize("frames", [12, 13])
def test_stride_2_padding(tap, first, frames):
    """Output frame t sees inputs 2t - 1 … 2t + 3, for odd and even lengths alike."""
    block = ConvNormAct(1, 2, 5, 2, has_relu=False).requires_grad_(False)
    block.norm = torch.nn.Identity()
    block.conv.weight.zero_()
    block.conv.weight[:, :, tap] = 1
    block.conv.bias.zero_()
    x = torch.arange(1.0, frames + 1)[None, None]
    found, lengths = block(x, torch.tensor([frames]))
    inputs = [2 * t + first for t in range(frames // 2)]
    expected = [x[0, 0, i].item() if 0 <= i < frames else 0.0 for i in inputs]
    assert found[0, 0].tolist() == expected
    assert lengths.item() == -(-frames // 2)


def test_mel_matrix():
    mel = mel_matrix(sample_rate=16000, n_fft=512, num_mels=128, max_hz=8000)
    assert mel[0].nonzero().flatten().tolist() == [1]
    assert mel[0, 1].item() == pytest.approx(0.0283775, abs=1e-7)
    assert mel[127].nonzero().flatten().tolist() == list(range(244, 256))
    assert (mel.sum(1) > 0).all()
    assert mel.sum().item() == pytest.approx(4.0904875, abs=2e-7)  # stated in float32


def test_collapse():
    assert collapse([5, 5, 5, 7, 7, 5]) == [5, 7, 5]
    assert collapse([]) == []
    assert collapse([3]) == [3]


def test_symbols():
    config = UnitsToSpeechConfig()
    assert config.num_symbols == 4274
    assert [config.first_symbol + unit for unit in (0, 9, 10, 4095)] == [178, 187, 188, 4273]
    tiny = UnitsToSpeech(UnitsToSpeechConfig.tiny())
    tiny.enc_p.emb.weight[tiny.config.first_symbol + 5] += 1.0
    moved = tiny.enc_p(torch.tensor([[5, 6]]))[0] - tiny.enc_p(torch.tensor([[4, 6]]))[0]
    assert moved.abs().max() > 1e-3


def test_durations():
    module = UnitsToSpeech(UnitsToSpeechConfig.tiny())
    log_frames = torch.tensor([0.0, math.log(2), math.log(2.0001), -3.0]) - 1e-6
    frames = module.durations(log_frames)
    assert frames.tolist() == [1, 2, 3, 1]
    assert int(frames.sum()) * GeneratorConfig().hop == 1792


def test_durations_are_bounded():
    module = UnitsToSpeech(UnitsToSpeechConfig.tiny())
    assert module.durations(torch.tensor([1e9, math.inf, -math.inf])).tolist() == [40, 40, 1]


@pytest.mark.parametrize(
    "y, x",
    [
        (0, 0),
        (0.25, 0.28089),
        (0.5, 0.5),
        (-4.75, -4.76379),
        (4.9, 4.90269),
        (5, 5),
        (6, 6),
        (-7, -7),
    ],
)
def test_spline_of_zeros(y, x):
    zeros = torch.zeros(10), torch.zeros(10), torch.zeros(9)
    found = inverse_spline(torch.tensor(float(y)), *zeros)
    assert found.item() == pytest.approx(x, abs=1e-5)


def test_generator_without_its_last_weights_is_silent():
    config = GeneratorConfig(initial_channels=16)
    module = Generator(config, 4, 3).requires_grad_(False)
    module.conv_post.weight.zero_()
    samples = module(torch.randn(1, 4, 5), torch.randn(1, 3, 1))
    assert samples.shape == (1, 1, 5 * 256)
    assert not samples.any()


def test_flow_without_its_last_weights_is_the_identity():
    module = PriorFlow(UnitsToSpeechConfig.tiny()).requires_grad_(False)
    for coupling in module.flows.values():
        coupling.post.weight.zero_()
        coupling.post.bias.zero_()
    z = torch.randn(1, 16, 7)
    assert torch.equal(module.inverse(z, torch.randn(1, 8, 1)), z)  # four flips


def test_sizes_of_the_published_networks():
    """Parameter counts of section 6, on the meta device."""
    from vllm_dynin.processors.codecs.speech_to_units import SpeechToUnits

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        s2u, u2s = SpeechToUnits(), UnitsToSpeech()
    # The specification counts weight norm's magnitudes too: 2 x 128 of the position convolutions.
    assert count(s2u.feature_encoder) == 90_617_216 - 2 * 128
    assert count(s2u.pre_quant) == 3_076
    assert count(u2s.enc_p) == 7_113_216
    assert count(u2s.dp) == 604_507
    assert count(u2s.style_embedding) == 32_256
    flow_magnitudes = 4 * (4 * 384 + 3 * 384 + 192 + 1536)
    assert count(u2s.flow) == 8_687_232 - flow_magnitudes
    up_magnitudes = 512 + 256 + 128 + 64
    block_magnitudes = sum(3 * 6 * channels for channels in (256, 128, 64, 32))
    assert count(u2s.dec) == 14_468_608 - up_magnitudes - block_magnitudes


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SpeechToUnitsConfig(levels=(8, 7)), "must be even"),
        (lambda: SpeechToUnitsConfig(features=LogMelConfig(num_mels=80)), "80 bands"),
        (lambda: SpeechToUnitsConfig(features=LogMelConfig(pad_to=6)), "padded to 6"),
        (lambda: UnitsToSpeechConfig(channels=15), "must be even"),
        (lambda: GeneratorConfig(upsample_kernels=(15, 16, 4, 4)), "kernel - rate must be even"),
        (lambda: GeneratorConfig(initial_channels=20), "cannot be halved 4 times"),
    ],
)
def test_impossible_configs(make, message):
    with pytest.raises(ValueError, match=message):
        make()
