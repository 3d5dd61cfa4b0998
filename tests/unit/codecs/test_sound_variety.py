"""Recordings in some three hundred forms: the same words are heard in each.

Decoded in this process, as the fuzz tests do; `tests/engine/field` sends the files to a server.
"""

import io
from unittest import mock

import numpy as np
import pytest
import soundfile
from helpers.audio_mutations import decode_here
from helpers.sound_files import RATE, at, spoken, with_ffmpeg, with_soundfile
from helpers.sound_variety import (
    BROKEN,
    COARSE,
    GOOD,
    SAID,
    open_flac,
    sized,
    stereo,
    wav,
    words,
)

from vllm_dynin.processors.codecs import audio_io
from vllm_dynin.processors.codecs.audio_io import load_audio
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits


@pytest.fixture(autouse=True)
def decoded_here(request):
    if request.node.name == "test_the_worker_hears_the_same":
        yield
        return
    with mock.patch.object(audio_io, "run_worker", decode_here):
        yield


def likeness(samples, word):
    """Best correlation of a word with a stretch of the samples, and where that stretch begins."""
    size = 1 << (len(samples) + len(word)).bit_length()
    spectrum = np.fft.rfft(samples, size) * np.conj(np.fft.rfft(word, size))
    products = np.fft.irfft(spectrum, size)[: len(samples) - len(word) + 1]
    energy = np.cumsum(np.concatenate([[0.0], samples.astype(np.float64) ** 2]))
    stretches = energy[len(word) :] - energy[: -len(word)]
    found = products / np.sqrt((stretches + 1e-9) * (word**2).sum())
    return found.max(), int(found.argmax())


def test_there_are_enough():
    assert len(GOOD) > 250 and len(BROKEN) > 25 and len(COARSE) < 25


@pytest.mark.parametrize("name", GOOD)
def test_every_word_is_heard(name):
    samples = load_audio(GOOD[name](), target_rate=RATE)
    found = [likeness(samples, spoken(word)[1_600:-1_600]) for word in SAID]
    assert min(value for value, _ in found) > (0.6 if name in COARSE else 0.9), found
    places = [place for _, place in found]
    assert places == sorted(places)
    assert 0.95 < len(samples) / len(words()) < 1.3  # nothing but the words and a short tail


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=list(BROKEN))
def test_nothing_is_heard(make, message):
    if make is BROKEN["wav of 8 samples"][0]:
        assert len(load_audio(make(), target_rate=RATE)) == 8  # refused where it is encoded
        return
    with pytest.raises(MediaError, match=message):
        load_audio(make(), target_rate=RATE)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_plain_samples_are_what_libsndfile_reads(subtype, endian, channels):
    """Bit for bit, in its blocks of float32: what was right before stays the same."""
    samples = np.random.default_rng(0).uniform(-1, 1, (3_000, channels))
    data = with_soundfile(samples, RATE, "WAV", subtype, endian)
    theirs, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    ours = load_audio(data, target_rate=RATE)
    np.testing.assert_array_equal(ours, theirs.mean(axis=1, dtype=np.float64).astype("f4"))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_flac_is_lossless(subtype):
    plain = load_audio(wav(RATE, subtype), target_rate=RATE)
    data = wav(RATE, subtype, kind="FLAC")
    for file in (data, open_flac(data), open_flac(data, 700)):
        np.testing.assert_array_equal(load_audio(file, target_rate=RATE), plain)


def test_the_whole_of_a_recording_whose_size_was_never_written():
    plain = load_audio(wav(), target_rate=RATE)
    for size in (0, 1, 5_000, 2**31, 2**32 - 1):
        np.testing.assert_array_equal(load_audio(sized(wav(), size), target_rate=RATE), plain)


def test_what_stands_behind_the_samples_is_no_sample():
    plain, data = load_audio(wav(), target_rate=RATE), wav()
    size = len(data) - data.index(b"data") - 8
    for rest in (b"LIST" + bytes(4), b"id3 \x0a\0\0\0" + bytes(10), b"ID3\x03" + bytes(900),
                 bytes(9_000), b"APETAGEX" + bytes(300), b"\x55" * 100):  # fmt: skip
        np.testing.assert_array_equal(load_audio(sized(data, size) + rest, target_rate=RATE), plain)


@pytest.mark.parametrize("right", [-1.0, -0.85])
def test_out_of_phase_is_the_mean_of_both_the_right_way_up(right):
    data = with_soundfile(stereo(RATE, 1, right), RATE, "WAV", "FLOAT")
    expected = words() * (1 - right) / 2
    np.testing.assert_allclose(load_audio(data, target_rate=RATE), expected, rtol=0, atol=1e-6)


def test_other_channels_are_left_as_they_are():
    """Two voices, one of them quiet and upside down in part: not silence, so not touched."""
    rng = np.random.default_rng(1)
    for right in (rng.standard_normal(9_000), 0.5 * rng.standard_normal(9_000), np.zeros(9_000)):
        left = rng.standard_normal(9_000)
        both = np.stack([left, right - 0.4 * left], 1).astype("f4")
        mean = both.mean(axis=1, dtype=np.float64).astype("f4")
        np.testing.assert_array_equal(load_audio(both, RATE, target_rate=RATE), mean)


def test_a_claim_that_cannot_be_right_is_counted_and_one_that_can_is_refused_at_once():
    short = open_flac(wav(44_100, kind="FLAC"), 2**34)  # four days in 37 kB
    assert len(load_audio(short, target_rate=RATE)) == len(words())
    for most in (1.0, 0.1):
        with pytest.raises(MediaError, match="duration in seconds is 2"):
            load_audio(
                wav(44_100, kind="AIFF"), target_rate=RATE, limits=MediaLimits(max_seconds=most)
            )


def test_a_guessed_duration_is_not_believed():
    """FFmpeg takes the bit rate of the first frames for that of all: here twelve times too long."""
    silence, said = np.zeros(RATE, np.float32), np.tile(words(), 4)
    low, high = (
        with_ffmpeg(at(44_100, part), 44_100, "adts", "aac", bit_rate=rate)
        for part, rate in ((silence, 32_000), (said, 256_000))
    )
    limits = MediaLimits(max_seconds=10)
    assert len(load_audio(low + high, target_rate=RATE, limits=limits)) > 9 * RATE


def test_the_worker_hears_the_same():
    """A few files through the process that serving uses."""
    for name in ("joined mp3", "cut vorbis", "flac of open length", "webm of a recorder",
                 "out of phase webm", "wav ULAW size 0"):  # fmt: skip
        data = GOOD[name]()
        with mock.patch.object(audio_io, "run_worker", decode_here):
            here = load_audio(data, target_rate=RATE)
        np.testing.assert_array_equal(load_audio(data, target_rate=RATE), here)
