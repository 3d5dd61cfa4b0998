"""Sound as files, whole and piece by piece: another reader gets the samples back."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

pytest.importorskip("fastapi", reason="the routes are part of the server")

from vllm_dynin.codec_runner import Sound
from vllm_dynin.entrypoints.http.sound_files import (
    MEDIA_TYPES,
    PCM_RATE,
    output_rate,
    streamed_file,
    whole_file,
)
from vllm_dynin.entrypoints.http.voices import VOICES, style_of
from vllm_dynin.processors.codecs.audio_io import load_audio
from vllm_dynin.processors.codecs.styles import parse_style
from vllm_dynin.processors.codecs.toy_speech import toy_styles

RATE = 16_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)).astype(np.float32)
LOSSLESS = ("wav", "flac", "pcm")


def samples_of(data: bytes, sound_format: str) -> tuple[np.ndarray, int]:
    if sound_format == "pcm":
        return np.frombuffer(data, "<i2") / 32_767, PCM_RATE
    return load_audio(data, target_rate=RATE), RATE


def frequency(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate / len(samples))


@pytest.mark.parametrize("sound_format", MEDIA_TYPES)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_is_written_can_be_read(sound_format, is_streamed):
    if is_streamed:
        pieces = list(streamed_file(iter(np.array_split(TONE, 5)), sound_format, RATE))
        assert len(pieces) > 3 and all(pieces)
        data = b"".join(pieces)
    else:
        data = whole_file(Sound(TONE, RATE), sound_format)
    samples, rate = samples_of(data, sound_format)
    assert len(samples) / rate == pytest.approx(2, abs=0.12)  # encoders pad
    assert frequency(samples[rate // 4 : -rate // 4], rate) == pytest.approx(440, abs=1)
    if sound_format in ("wav", "flac"):
        np.testing.assert_allclose(samples, TONE, atol=1 / 32_000)


@pytest.mark.parametrize("sound_format", LOSSLESS)
def test_pieces_add_up_to_the_whole(sound_format):
    pieces = np.array_split(TONE, 7)
    streamed = b"".join(streamed_file(iter(pieces), sound_format, RATE))
    once = b"".join(streamed_file(iter([TONE]), sound_format, RATE))
    first, second = (samples_of(data, sound_format)[0] for data in (streamed, once))
    np.testing.assert_allclose(first, second, atol=1.5 / 32_767)


def test_a_whole_file_says_its_length():
    for sound_format in ("wav", "flac"):
        found = soundfile.info(io.BytesIO(whole_file(Sound(TONE, RATE), sound_format)))
        assert (found.frames, found.samplerate) == (len(TONE), RATE)


def test_loud_sound_is_clipped_not_wrapped():
    loud = np.full(RATE, 1.5, np.float32)
    samples, _ = samples_of(b"".join(streamed_file(iter([loud]), "wav", RATE)), "wav")
    assert samples.min() > 0.99


def test_rates():
    assert [output_rate(name, 22_050) for name in ("wav", "pcm", "opus")] == [
        22_050,
        24_000,
        48_000,
    ]


def test_voices():
    names = set(toy_styles().names)
    for voice in VOICES:
        assert style_of(voice.upper()) in names  # the small codec has all of them
    assert style_of("emotion-sad") == parse_style("emotion-sad").name
    with pytest.raises(ValueError, match=r"voice='bob'.*alloy.*gender-male"):
        style_of("bob")
    with pytest.raises(ValueError, match="emotion is one of"):
        style_of("emotion-hapy")
