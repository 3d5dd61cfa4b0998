"""Rough forms of speech, and what a classifier is shown of them."""

import copy
import difflib
import random

import numpy as np
import pytest
import soundfile
import torch
from helpers.sound_files import SPEECH, at, spoken, with_soundfile

from vllm_dynin.processors.codecs.audio_io import load_audio
from vllm_dynin.processors.codecs.speech import SpeechCodec
from vllm_dynin.training_ext.codecs import toy_speech_harden, toy_speech_rough
from vllm_dynin.training_ext.codecs.toy_speech_harden import harden
from vllm_dynin.training_ext.codecs.toy_speech_rough import roughened

RATE = 16_000


@pytest.fixture(scope="module")
def sentence():
    return soundfile.read(SPEECH / "sentence.flac", dtype="float32")[0]


@pytest.fixture
def codec():
    return SpeechCodec.from_pretrained()


def delay(late, samples):
    size = 1 << 18
    likeness = np.fft.irfft(np.fft.rfft(late, size) * np.conj(np.fft.rfft(samples, size)))
    found = int(np.abs(likeness).argmax())
    return found if found < size // 2 else found - size


@pytest.mark.parametrize("seed", range(40))
def test_a_rough_form_is_in_time(sentence, seed):
    rough = roughened(sentence, random.Random(seed))
    assert rough.dtype == np.float32 and rough.shape == sentence.shape
    assert np.isfinite(rough).all() and not np.array_equal(rough, sentence)
    assert abs(delay(rough, sentence)) <= 16  # a tenth of a frame
    assert np.array_equal(rough, roughened(sentence, random.Random(seed)))


@pytest.mark.parametrize("coder", sorted(set(toy_speech_rough._CODERS)))
@pytest.mark.parametrize("rate", [8_000, 11_127, RATE])
def test_every_coder_is_in_time(sentence, coder, rate, monkeypatch):
    monkeypatch.setattr(toy_speech_rough, "_CODERS", (coder,))
    coded, its_rate = toy_speech_rough._coded(at(rate, sentence), rate, random.Random(0))
    assert abs(delay(toy_speech_rough._at(coded, its_rate, RATE), sentence)) <= 16


def test_what_is_shown_is_what_the_codec_sees(codec, sentence):
    waveform = torch.from_numpy(sentence)
    toy = codec.backend
    shown = toy_speech_harden._Shown(toy, [waveform], copies=1, seed=0)
    number = -(-len(sentence) // 160)
    clean, wanted = shown.frames(torch.arange(number))
    rough, also_wanted = shown.frames(torch.arange(number, 2 * number))
    assert torch.equal(clean, toy.stacked(waveform)) and not torch.equal(clean, rough)
    assert torch.equal(wanted, also_wanted)
    torch.testing.assert_close(wanted, toy.classify(clean).exp(), rtol=1e-2, atol=1e-3)
    silence, pause = shown.frames(torch.arange(2 * number, len(shown)))
    assert silence.abs().max() < 1 and pause[:, 0].min() > 0.5


def test_only_the_classifier_is_taught(codec):
    toy = codec.backend
    before = copy.deepcopy(toy.state_dict())
    waveforms = [torch.from_numpy(spoken(word)) for word in ("one", "two")]
    harden(toy, waveforms, copies=1, epochs=1, batch=64)
    changed = {name for name, tensor in toy.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {"hidden.weight", "hidden.bias", "score.weight", "score.bias"}
    assert not any(parameter.requires_grad for parameter in toy.parameters())


@pytest.mark.parametrize(("subtype", "least"), [("PCM_16", 0.85), ("ULAW", 0.7), ("GSM610", 0.8)])
def test_the_shipped_codec_hears_the_same_units(codec, sentence, subtype, least):
    """At 8 kHz, where half of the bands are empty. Before it was taught: 0.71, 0.52, 0.55."""
    narrow = with_soundfile(at(8_000, sentence), 8_000, "WAV", subtype)
    units = [codec.encode(sentence, RATE), codec.encode(load_audio(narrow, target_rate=RATE), RATE)]
    assert difflib.SequenceMatcher(None, *units, autojunk=False).ratio() > least
