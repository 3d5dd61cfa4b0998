"""Speech as it arrives: through a telephone, a low bit rate, a loud or a quiet microphone, hiss.

The toy codec's classifier hears each utterance as it is and in a few such forms, so that the units
of a recording do not depend on the way it came. A form is a chain: microphone, band, coder.
"""

from __future__ import annotations

import io
import random

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from vllm_dynin.processors.codecs.toy_vocoder import SAMPLE_RATE

Samples = NDArray[np.float32]

_RATES = (8_000, 8_000, 8_000, 11_025, 12_000, 22_050)
_CODERS = (
    ("WAV", "PCM_U8"),
    ("WAV", "ULAW"),
    ("WAV", "ALAW"),
    ("WAV", "GSM610"),
    ("WAV", "GSM610"),
    ("WAV", "IMA_ADPCM"),
    ("WAV", "NMS_ADPCM_16"),
    ("MP3", "MPEG_LAYER_III"),
    ("MP3", "MPEG_LAYER_III"),
    ("OGG", "OPUS"),
    ("OGG", "OPUS"),
    ("OGG", "VORBIS"),
)
_CODER_RATES = {  # that are used of those that these have; others take any
    "GSM610": (8_000,),
    "NMS_ADPCM_16": (8_000,),
    "MPEG_LAYER_III": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000),
    "OPUS": (8_000, 12_000, 16_000, 24_000),
}


def roughened(samples: Samples, rng: random.Random) -> Samples:
    """One other form of an utterance.

    Args:
        samples: float32 [N] at 16 kHz, full scale 1.0.
        rng: draws the form.

    Returns:
        float32 [N] at 16 kHz, in time with the given samples.
    """
    rough = _microphone(samples, rng)
    rate = SAMPLE_RATE
    if rng.random() < 0.3:
        rough = _band(rough, rng)
    if rng.random() < 0.65:
        rate = rng.choice(_RATES) if rng.random() < 0.6 else rng.randint(6_000, 15_000)
    narrow = _at(rough, SAMPLE_RATE, rate)
    if rng.random() < 0.6:
        narrow, rate = _coded(narrow, rate, rng)
    else:
        narrow = (np.round(narrow.clip(-1, 1) * 32_767) / 32_767).astype(np.float32)
    wide = _stored(narrow, rate, rng)[: len(samples)]
    return np.pad(wide, (0, len(samples) - len(wide)))


def _stored(samples: Samples, rate: int, rng: random.Random) -> Samples:
    """At 16 kHz, by good and by simple means, and at times rounded once more.

    A good resampler leaves nothing above the old band; a simple one leaves images, and rounding
    leaves noise. The classifier sees each band at one scale, so all three look like something.
    """
    wide: NDArray[np.floating]
    if rate == SAMPLE_RATE or rng.random() < 0.85:
        wide = _at(samples, rate, SAMPLE_RATE)
    else:
        places = np.arange(len(samples) * SAMPLE_RATE // rate) * (rate / SAMPLE_RATE)
        wide = np.interp(places, np.arange(len(samples)), samples)
    if rng.random() < 0.3:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(wide))
        wide = wide + 10 ** (rng.uniform(-105, -65) / 20) * noise
    return wide.astype(np.float32)


def _microphone(samples: Samples, rng: random.Random) -> Samples:
    """Quieter, or too loud; with hiss or hum."""
    noise = np.random.default_rng(rng.getrandbits(32))
    rough: NDArray[np.floating] = samples
    if (drawn := rng.random()) < 0.3:
        rough = rough * np.float32(10 ** (rng.uniform(-30, 0) / 20))
    elif drawn < 0.5:
        rough = (rough * (rng.uniform(1, 5) / np.abs(rough).max())).clip(-1, 1)
    loudest = float(np.abs(rough).max())
    if rng.random() < 0.5:
        level = loudest * 10 ** (rng.uniform(-60, -30) / 20)
        hiss = noise.standard_normal(len(rough)).astype(np.float32)
        rough = rough + np.float32(level) * _tilted(hiss, rng.choice((0.0, 0.0, 0.5, 1.0)))
    if rng.random() < 0.1:
        time = np.arange(len(rough)) / SAMPLE_RATE
        level = loudest * 10 ** (rng.uniform(-50, -20) / 20)
        rough = rough + (level * np.sin(2 * np.pi * rng.choice((50, 60)) * time))
    return rough.astype(np.float32)


def _tilted(hiss: Samples, tilt: float) -> Samples:
    """White noise with a spectrum that falls: 0.5 is pink. Keeps its power."""
    if not tilt:
        return hiss
    spectrum = np.fft.rfft(hiss)
    spectrum *= np.arange(1, len(spectrum) + 1) ** -tilt
    tilted = np.fft.irfft(spectrum, len(hiss))
    return (tilted / tilted.std()).astype(np.float32)


def _band(samples: Samples, rng: random.Random) -> Samples:
    """What a telephone or a small loudspeaker leaves, with slopes of 12 to 60 dB per octave."""
    low, high = rng.uniform(50, 400), rng.choice((rng.uniform(3_000, 4_000), rng.uniform(3e3, 8e3)))
    order = rng.uniform(2, 10)
    size = 2 * len(samples)
    hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE) + 1e-3
    gain = ((1 + (low / hz) ** (2 * order)) * (1 + (hz / high) ** (2 * order))) ** -0.5
    return np.fft.irfft(np.fft.rfft(samples, size) * gain, size)[: len(samples)].astype(np.float32)


def _coded(samples: Samples, rate: int, rng: random.Random) -> tuple[Samples, int]:
    """Through a coder of libsndfile, lossy ones at 8 kbit/s and more; samples and their rate."""
    kind, subtype = rng.choice(_CODERS)
    known = _CODER_RATES.get(subtype, (rate,))
    coded = next((one for one in known if one >= rate), known[-1])
    options: dict[str, object] = {}
    if kind != "WAV":
        options["compression_level"] = 1 - 10 ** rng.uniform(-2, -0.5)
    if kind == "MP3":
        options["bitrate_mode"] = "CONSTANT"
    file = io.BytesIO()
    loud = _at(samples, rate, coded).clip(-1, 1)
    soundfile.write(file, loud, coded, format=kind, subtype=subtype, **options)
    file.seek(0)
    heard, _ = soundfile.read(file, dtype="float32")
    return (_in_time(heard, loud, coded) if kind == "MP3" else heard), coded


def _at(samples: Samples, rate: int, other: int) -> Samples:
    return samples if rate == other else soxr.resample(samples, rate, other)


def _in_time(late: Samples, samples: Samples, rate: int) -> Samples:
    """Without the samples that a coder adds in front and does not tell of."""
    size = 1 << (len(late) + len(samples)).bit_length()
    likeness = np.fft.irfft(np.fft.rfft(late, size) * np.conj(np.fft.rfft(samples, size)))
    return late[int(likeness[: rate // 4].argmax()) :]
