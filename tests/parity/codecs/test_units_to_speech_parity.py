"""The speech decoder against the loops of `speech_oracles`, in float64, with injected noise."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from helpers import speech_oracles as oracle

from vllm_dynin.processors.codecs.units_to_speech import UnitsToSpeech, UnitsToSpeechConfig
from vllm_dynin.processors.codecs.vits_generator import Generator, GeneratorConfig
from vllm_dynin.processors.codecs.vits_layers import RelativeAttention, inverse_spline

TINY = UnitsToSpeechConfig.tiny()
TIGHT = {"rtol": 0, "atol": 1e-9}
UNITS = [3, 31, 0, 7, 7, 12, 1]


def randomised(module, seed=0, scale=0.25):
    """Every tensor random, those that are zero at the start included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module.double()


@pytest.fixture(scope="module")
def decoder():
    module = randomised(UnitsToSpeech(TINY))
    module.dp.flows["0"].m -= 1.0  # durations of a few frames
    return module


@pytest.fixture(scope="module")
def w(decoder):
    return oracle.weights(decoder)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_unit_encoder(decoder, w):
    expected = oracle.unit_encoder(oracle.sub(w, "enc_p"), UNITS, TINY)
    found = decoder.enc_p(torch.tensor([UNITS]))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours[0].numpy(), theirs, **TIGHT)


@pytest.mark.parametrize("length", [1, 2, 4, 5, 13])
def test_relative_attention(length):
    """Shorter than, as long as and longer than the window."""
    module = randomised(RelativeAttention(12, 3, 4).requires_grad_(False), seed=length, scale=0.7)
    x = noise(12, length)
    expected = oracle.relative_attention(oracle.weights(module), x, 3, 4)
    np.testing.assert_allclose(module(torch.from_numpy(x)[None])[0].numpy(), expected, **TIGHT)


@pytest.mark.parametrize("styled", [True, False])
def test_duration_predictor(decoder, w, styled):
    hidden, z = noise(16, 9, seed=1), noise(2, 9, seed=2) * 2
    style = noise(8, 1, seed=3) if styled else None
    expected = oracle.duration_predictor(oracle.sub(w, "dp"), hidden, style, z, TINY)
    found = decoder.dp(
        torch.from_numpy(hidden)[None],
        None if style is None else torch.from_numpy(style)[None],
        torch.from_numpy(z.copy())[None],
    )
    np.testing.assert_allclose(found[0].numpy(), expected, **TIGHT)


def test_spline_by_bisection():
    rng = np.random.default_rng(5)
    raw = rng.standard_normal((200, 29)) * 2
    y = np.concatenate(
        [rng.uniform(-5, 5, 190), [-5.0, 5.0, -5.1, 6, 4.9999999, 0, -7, 5 - 1e-7, 1, 2]]
    )
    parts = torch.from_numpy(raw).split([10, 10, 9], -1)
    found = inverse_spline(torch.from_numpy(y), *parts)
    expected = [
        oracle.spline_inverse(v, oracle.spline_tables(r[:10], r[10:20], r[20:]))
        for v, r in zip(y, raw, strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-8)  # steep bins
    back = [
        oracle.spline_forward(v, oracle.spline_tables(r[:10], r[10:20], r[20:]))
        for v, r in zip(found.tolist(), raw, strict=True)
    ]
    np.testing.assert_allclose(back, y, rtol=0, atol=1e-8)


@pytest.mark.parametrize("styled", [True, False])
def test_flow_and_its_round_trip(decoder, w, styled):
    z = noise(16, 11)
    style = noise(8, 1, seed=3) if styled else None
    style_tensor = None if style is None else torch.from_numpy(style)[None]
    found = decoder.flow.inverse(torch.from_numpy(z)[None], style_tensor)[0].numpy()
    flow = oracle.sub(w, "flow")
    np.testing.assert_allclose(found, oracle.flow_inverse(flow, z, style, TINY), **TIGHT)
    np.testing.assert_allclose(oracle.flow_forward(flow, found, style, TINY), z, **TIGHT)


@pytest.mark.parametrize(
    "config",
    [
        TINY.generator,
        GeneratorConfig(initial_channels=8, upsample_rates=(8, 2), upsample_kernels=(16, 4)),
        GeneratorConfig(
            initial_channels=6,
            upsample_rates=(3,),
            upsample_kernels=(5,),
            resblock_kernels=(3, 5),
            resblock_dilations=(1, 2),
        ),
    ],
    ids=["tiny", "rate 8", "odd"],
)
def test_generator(config):
    module = randomised(Generator(config, 4, 3).requires_grad_(False), seed=2, scale=0.3)
    z, style = noise(4, 5), noise(3, 1, seed=1)
    expected = oracle.generator(oracle.weights(module), z, style, config)
    found = module(torch.from_numpy(z)[None], torch.from_numpy(style)[None])
    assert found.shape == (1, 1, 5 * config.hop)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, **TIGHT)


@pytest.mark.parametrize("speed", [1.0, 1.7])
def test_whole_path(decoder, w, speed):
    style = w["style_embedding.weight"][41][:, None]
    expected, frames = oracle.units_to_speech(
        w, UNITS, style, noise(2, 7), lambda total: noise(16, total, seed=9), TINY, speed
    )
    assert len(set(frames)) > 1
    assert sum(frames) < 120
    options = {
        "speed": speed,
        "duration_noise": torch.from_numpy(noise(2, 7))[None],
        "prior_noise": torch.from_numpy(noise(16, sum(frames), seed=9))[None],
    }
    units, vector = torch.tensor(UNITS), decoder.style_vector(41)
    assert decoder.latents(units, vector, **options)[1].tolist() == frames
    found = decoder(units, vector, **options).numpy()
    np.testing.assert_allclose(found, expected, **TIGHT)
    pieces = torch.cat(list(decoder.stream(units, vector, 3, **options)))
    np.testing.assert_allclose(pieces.numpy(), expected, **TIGHT)


# Chunked generation.


@pytest.mark.parametrize("chunk", [1, 2, 7, 13, 64, 400])
def test_stream_equals_whole(chunk):
    config = GeneratorConfig(initial_channels=16)
    module = randomised(Generator(config, 4, 3).requires_grad_(False), seed=3, scale=0.2)
    z, style = torch.from_numpy(noise(1, 4, 64)), torch.from_numpy(noise(1, 3, 1))
    whole = module(z, style)
    pieces = list(module.stream(z, style, chunk))
    assert [p.shape[-1] for p in pieces[:-1]] == [chunk * 256] * (len(pieces) - 1)
    torch.testing.assert_close(torch.cat(pieces, dim=-1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "config",
    [
        GeneratorConfig(initial_channels=16),
        TINY.generator,
        GeneratorConfig(
            initial_channels=4,
            upsample_rates=(5, 3),
            upsample_kernels=(9, 3),
            resblock_kernels=(5,),
        ),
    ],
    ids=["published rates", "tiny", "odd"],
)
def test_receptive_field_is_exact(config):
    """The samples of a frame depend on as many frames as `context_frames` says: not less, not more.

    Read off the gradient, which stays above zero where a difference would be rounded away. All
    weights are positive, so that nothing can cancel.
    """
    module = Generator(config, 2, 3).requires_grad_(False).double()
    for parameter in module.parameters():
        parameter.fill_(0.5 / parameter[0].numel())
    context, hop = config.context_frames, config.hop
    middle, total = context + 3, 2 * context + 7
    z = torch.ones(1, 2, total, dtype=torch.float64, requires_grad=True)
    module(z, None)[0, 0, middle * hop : (middle + 1) * hop].sum().backward()
    reached = (z.grad[0] != 0).any(dim=0).nonzero().flatten().tolist()
    assert reached == list(range(middle - context, middle + context + 1))


def test_published_context():
    assert GeneratorConfig().context_frames == 13


# The draws.


def test_noise_is_drawn_as_the_source_draws_it(decoder):
    """First [1, 2, T] by randn, then randn_like of a frame-major view."""
    torch.manual_seed(7)
    first = torch.randn(1, 2, 5, dtype=torch.float64)
    frame_major = torch.zeros(1, 40, 16, dtype=torch.float64).transpose(1, 2)
    second = torch.randn_like(frame_major)
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(decoder.draw_duration_noise(5, generator), first)
    assert torch.equal(decoder.draw_prior_noise(40, generator), second)
    contiguous = torch.randn(1, 16, 40, dtype=torch.float64, generator=generator.manual_seed(7))
    assert not torch.equal(contiguous, second)


def test_noise_scales_and_seed(decoder):
    units = torch.tensor(UNITS)

    def run(seed, **options):
        return decoder(units, None, generator=torch.Generator().manual_seed(seed), **options)

    assert torch.equal(run(1), run(1))
    one, two = run(1), run(2)
    assert one.shape != two.shape or not torch.equal(one, two)
    silent = {"duration_noise_scale": 0.0, "prior_noise_scale": 0.0}
    assert torch.equal(run(1, **silent), run(2, **silent))


def test_durations(decoder):
    log_frames = torch.tensor([0.0, math.log(2), math.log(2.0001), -3.0, 99.0])
    assert decoder.durations(log_frames - 1e-7).tolist() == [1, 2, 3, 1, 40]
    assert decoder.durations(log_frames[1:3], speed=0.5).tolist() == [4, 5]
    capped = dataclasses.replace(TINY, max_frames_per_unit=4)
    assert UnitsToSpeech(capped).durations(log_frames).max() == 4
