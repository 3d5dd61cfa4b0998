"""The speech encoder against the loops of `speech_oracles`, in float64."""

import dataclasses
import math

import librosa
import numpy as np
import pytest
import torch
from helpers import speech_oracles as oracle

from vllm_dynin.processors.codecs.speech_features import LogMel, LogMelConfig, mel_matrix
from vllm_dynin.processors.codecs.speech_to_units import (
    SpeechToUnits,
    SpeechToUnitsConfig,
    fsq_digits,
)

TINY = SpeechToUnitsConfig.tiny()
# The oracle does the same arithmetic in the same precision, in another order.
TIGHT = {"rtol": 0, "atol": 1e-9}


def randomised(module, seed=0):
    """Every tensor random, norms and biases included; of a size that lets the input through."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * (1.5 / math.sqrt(parameter[0].numel())))
        else:
            parameter.copy_(0.1 * noise + ("norm" in name and name.endswith("weight")))
    return module.double()


@pytest.fixture(scope="module")
def encoder():
    return randomised(SpeechToUnits(TINY))


@pytest.mark.parametrize("num_samples", [480, 703, 1601])
def test_front_end(num_samples):
    config = LogMelConfig(num_mels=20)
    module = LogMel(config).double()
    module.window = torch.from_numpy(oracle.hann(config.window))
    module.fb = torch.from_numpy(oracle.mel_filters(20, 16000, 512))[None]
    waveform = np.random.default_rng(num_samples).standard_normal(num_samples)
    expected, length = oracle.log_mel(waveform, num_mels=20)
    found, valid = module(torch.from_numpy(waveform))
    assert valid == length
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-8)  # log of tiny bands


@pytest.mark.parametrize(
    "num_mels, rate, n_fft", [(128, 16000, 512), (40, 16000, 512), (80, 22050, 1024)]
)
def test_mel_matrix_is_librosas(num_mels, rate, n_fft):
    ours = mel_matrix(sample_rate=rate, n_fft=n_fft, num_mels=num_mels, max_hz=rate / 2)
    theirs = librosa.filters.mel(
        sr=rate, n_fft=n_fft, n_mels=num_mels, fmin=0, fmax=rate / 2, htk=False, norm="slaney"
    )
    # librosa answers in float32.
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(ours.numpy(), oracle.mel_filters(num_mels, rate, n_fft), atol=1e-12)


@pytest.mark.parametrize("length, padded", [(1, 4), (9, 16), (12, 12), (13, 16)])
def test_encoder(encoder, length, padded):
    features = torch.randn(
        1, 16, padded, dtype=torch.float64, generator=torch.Generator().manual_seed(length)
    )
    expected, count = oracle.spiral(
        oracle.weights(encoder.feature_encoder), features[0].numpy(), length, TINY.encoder
    )
    found, counts = encoder.feature_encoder(features, torch.tensor([length]))
    assert counts.tolist() == [count] == [math.ceil(math.ceil(length / 2) / 2)]
    np.testing.assert_allclose(found[0, :, :count].numpy(), expected[:, :count], **TIGHT)


def test_units_from_the_waveform(encoder):
    """Front end, encoder, projection and quantiser together, on 40 ms per unit."""
    waveform = np.random.default_rng(1).standard_normal(3001)
    module = randomised(SpeechToUnits(TINY))
    module.features.window = torch.from_numpy(oracle.hann(320))
    module.features.fb = torch.from_numpy(oracle.mel_filters(16, 16000, 512))[None]
    features, length = oracle.log_mel(waveform, num_mels=16)
    hidden, count = oracle.spiral(
        oracle.weights(module.feature_encoder), features, length, TINY.encoder
    )
    z = oracle.linear(oracle.weights(module.pre_quant), hidden)[:, :count]
    expected = []
    for column in z.T:
        unit, weight = 0, 1
        for value, levels in zip(column, TINY.levels, strict=True):
            half = (levels - 1) * (1 - 1e-3) / 2
            bounded = np.tanh(value + np.tan(0.5 / half)) * half - 0.5
            unit += weight * (int(np.round(bounded)) + levels // 2)
            weight *= levels
        expected.append(unit)
    (found,) = module([torch.from_numpy(waveform)])
    assert found.tolist() == expected
    assert len(set(expected)) > 1


# Invariances, in the precision that serves.


@pytest.fixture(scope="module")
def float_encoder():
    return randomised(SpeechToUnits(TINY)).float()


@pytest.mark.parametrize("length", [1, 25, 100, 101])
def test_right_padding_does_not_matter(float_encoder, length):
    """Also pad-to-4 against pad-to-16, and junk behind the valid frames."""
    generator = torch.Generator().manual_seed(0)
    valid = torch.randn(1, 16, length, generator=generator)
    results = []
    for padded in (-(-length // 4) * 4, -(-length // 16) * 16, length // 16 * 16 + 64):
        junk = 10 * torch.randn(1, 16, padded, generator=generator)
        junk[..., :length] = valid
        latents, counts = float_encoder.latents(junk, torch.tensor([length]))
        assert counts.item() == -(-length // 4)  # an odd length keeps its last unit
        results.append(latents[:, : counts.item()])
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=0, atol=1e-5)


def test_unpadded_frames_are_refused(float_encoder):
    with pytest.raises(ValueError, match="101 frames are not a multiple of 4"):
        float_encoder.latents(torch.zeros(1, 16, 101), torch.tensor([101]))


def test_a_batch_equals_its_rows(float_encoder):
    rng = np.random.default_rng(3)
    waves = [torch.from_numpy(rng.standard_normal(n).astype("f4")) for n in (16001, 480, 52800)]
    rows = [float_encoder.features(wave) for wave in waves]
    widest = max(f.shape[1] for f, _ in rows)
    batch = torch.stack([torch.nn.functional.pad(f, (0, widest - f.shape[1])) for f, _ in rows])
    latents, counts = float_encoder.latents(batch, torch.tensor([length for _, length in rows]))
    assert counts.tolist() == [26, 1, 83]
    for row, (features, length) in enumerate(rows):
        single, _ = float_encoder.latents(features[None], torch.tensor([length]))
        n = counts[row]
        torch.testing.assert_close(latents[row, :n], single[0, :n], rtol=0, atol=1e-5)
    assert [len(units) for units in float_encoder(waves)] == [26, 1, 83]


def test_loudness_does_not_matter(float_encoder):
    waveform = torch.from_numpy(np.random.default_rng(4).standard_normal(16000).astype("f4"))
    quiet, loud = float_encoder([waveform, 2 * waveform])
    # Equal but for the 1e-5 in the peak norm: at most a unit that lies on a threshold moves.
    assert (quiet != loud).sum() <= 1
    assert len(set(quiet.tolist())) > 1


def test_fsq_thresholds_are_those_of_tan():
    """Digits change at the stated z, not where atanh in place of tan would put it."""
    edges = [-1.42970, -0.79447, -0.43819, -0.14398, 0.15022, 0.50651, 1.14173]
    for digit, edge in enumerate(edges):
        z = torch.tensor([[edge - 1e-4] * 4, [edge + 1e-4] * 4], dtype=torch.float64)
        assert fsq_digits(z, (8, 8, 8, 8)).tolist() == [[digit] * 4, [digit + 1] * 4]


def test_another_shape_is_another_config():
    """The oracle agrees at other sizes as well: other strides of lengths, heads and groups."""
    config = dataclasses.replace(
        TINY.encoder, low_filters=(8, 16, 16), high_filters=(24, 16), high_layers=1, pos_kernel=4
    )
    module = randomised(SpeechToUnits(dataclasses.replace(TINY, encoder=config)), seed=5)
    features = torch.randn(1, 16, 8, dtype=torch.float64)
    expected, count = oracle.spiral(
        oracle.weights(module.feature_encoder), features[0].numpy(), 7, config
    )
    found, _ = module.feature_encoder(features, torch.tensor([7]))
    np.testing.assert_allclose(found[0, :, :count].numpy(), expected[:, :count], **TIGHT)
