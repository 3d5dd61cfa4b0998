"""Damaged audio files, for the tests and for tests/helpers/fuzz_audio.py.

The same for the same seed, but for the serial number that an encoder draws for each Ogg file.
"""

import random
import struct
from unittest import mock

import numpy as np

from vllm_dynin.processors.codecs import audio_io, audio_worker
from vllm_dynin.processors.codecs.audio_io import encode_audio, load_audio
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits

FORMATS = ("wav", "flac", "ogg", "opus", "mp3", "aac", "m4a", "webm", "aiff", "wav8", "wavf")
LIMITS = MediaLimits(max_bytes=2**20, max_seconds=30, max_channels=16)
TARGET_RATE = 16_000


def _with_av(samples, rate, container_format, codec):
    import io

    import av

    target = io.BytesIO()
    with av.open(target, "w", format=container_format) as container:
        track = container.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(format=track.format, layout="mono", rate=rate)
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        for part in resampler.resample(frame):
            container.mux(track.encode(part))
        container.mux(track.encode(None))
    return target.getvalue()


def originals():
    """One small good file per format: half a second of a gliding tone."""
    import io

    import soundfile

    time = np.arange(12_000) / 24_000
    tone = (0.5 * np.sin(2 * np.pi * (200 + 300 * time) * time)).astype(np.float32)
    files = {name: encode_audio(tone, 24_000, name) for name in FORMATS[:6]}
    files["m4a"] = _with_av(tone, 24_000, "mp4", "aac")
    files["webm"] = _with_av(tone, 48_000, "webm", "libopus")
    for name, kind in (("aiff", "AIFF"), ("wav8", "WAV"), ("wavf", "WAV")):
        target = io.BytesIO()
        subtype = {"aiff": "PCM_24", "wav8": "PCM_U8", "wavf": "DOUBLE"}[name]
        soundfile.write(target, tone, 24_000, format=kind, subtype=subtype)
        files[name] = target.getvalue()
    return files


def _flip(data, rng):
    for _ in range(rng.choice([1, 2, 8, 64])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _head(data, rng):
    """Only the header, where sizes, rates and channel counts stand."""
    for _ in range(rng.choice([1, 2, 4])):
        data[rng.randrange(min(len(data), 128))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])


def _truncate(data, rng):
    del data[rng.randrange(1, len(data)) :]


def _word(data, rng):
    at = rng.randrange(max(len(data) - 4, 1))
    value = rng.choice([0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, rng.getrandbits(32)])
    data[at : at + 4] = struct.pack(rng.choice("<>") + "I", value)


def _splice(data, rng):
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    data[a:a] = data[a : min(b, a + 4096)]


def _drop(data, rng):
    a = rng.randrange(len(data))
    del data[a : a + rng.choice([1, 7, 300])]
    data += b"\0" * (not data)


MUTATIONS = (_flip, _head, _truncate, _word, _splice, _drop)


def mutant(files, seed):
    """Mutant number `seed` of files by name: the name, the mutations' names, and the bytes."""
    rng = random.Random(seed)
    name = list(files)[seed % len(files)]
    data = bytearray(files[name])
    chosen = [rng.choice(MUTATIONS) for _ in range(rng.choice([1, 1, 2, 3]))]
    for mutate in chosen:
        mutate(data, rng)
    return name, [mutate.__name__ for mutate in chosen], bytes(data)


def decode_here(_module, stream, task, limits, _medium):
    """In place of `run_worker`: thousands of processes would take too long."""
    stream.seek(0)
    return b"".join(audio_worker.decode(stream, task, limits))


def outcome(data):
    """`read` or `refused`; anything else that happens is a bug and comes out as an exception."""
    try:
        with mock.patch.object(audio_io, "run_worker", decode_here):
            samples = load_audio(data, target_rate=TARGET_RATE, limits=LIMITS)
    except MediaError as error:
        assert str(error)
        return "refused"
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) <= LIMITS.max_seconds * TARGET_RATE + TARGET_RATE // 100
    assert np.isfinite(samples).all()
    return "read"
