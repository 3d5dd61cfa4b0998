"""What reaches us of speech that went another way than a studio's: name → the file of samples.

Each takes float32 [N] at 16 kHz. Half of the coders are not among those that the speech codec of
`dynin-tiny` was fitted with (`training_ext/codecs/toy_speech_rough.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import soxr

from helpers.sound_files import RATE, at, can_encode, with_ffmpeg, with_soundfile

Maker = Callable[[np.ndarray], bytes]


def wav(rate: int, subtype: str = "PCM_16") -> Maker:
    """WAV by libsndfile."""
    return lambda samples: with_soundfile(at(rate, samples), rate, "WAV", subtype)


def coded(rate: int, container: str, codec: str, bit_rate: int | None = None) -> Maker:
    """A file by FFmpeg."""
    return lambda samples: with_ffmpeg(at(rate, samples), rate, container, codec, bit_rate=bit_rate)


def telephone(samples: np.ndarray) -> np.ndarray:
    """300 to 3,400 Hz, with slopes of 48 dB per octave."""
    hz = np.fft.rfftfreq(len(samples), 1 / RATE) + 1e-3
    gain = ((1 + (300 / hz) ** 16) * (1 + (hz / 3_400) ** 16)) ** -0.5
    return np.fft.irfft(np.fft.rfft(samples) * gain, len(samples)).astype(np.float32)


def hissing(samples: np.ndarray, decibels: float = -50) -> np.ndarray:
    """White noise of a level in dBFS."""
    noise = np.random.default_rng(0).standard_normal(len(samples))
    return (samples + 10 ** (decibels / 20) * noise).astype(np.float32)


def upsampled(samples: np.ndarray) -> bytes:
    """8 kHz brought to 48 kHz by somebody else."""
    return with_soundfile(soxr.resample(at(8_000, samples), 8_000, 48_000), 48_000, "WAV", "PCM_16")


ROUGH: dict[str, Maker] = {
    "16 kHz": wav(RATE),
    "8 kHz": wav(8_000),
    "9.6 kHz": wav(9_600),
    "11.025 kHz": wav(11_025),
    "12 kHz": wav(12_000),
    "8 kHz at 48 kHz": upsampled,
    "telephone band": lambda samples: wav(RATE)(telephone(samples)),
    "telephone band at 8 kHz": lambda samples: wav(8_000)(telephone(samples)),
    "mu-law": wav(8_000, "ULAW"),
    "A-law": wav(8_000, "ALAW"),
    "GSM": wav(8_000, "GSM610"),
    "AMR": coded(8_000, "amr", "libopencore_amrnb", 12_200),
    "G.722": coded(16_000, "wav", "adpcm_g722"),
    "8 bits": wav(RATE, "PCM_U8"),
    "Vorbis at 8 kHz": lambda samples: with_soundfile(at(8_000, samples), 8_000, "OGG", "VORBIS"),
    "Opus, 12 kbit/s": coded(48_000, "ogg", "libopus", 12_000),
    "MP3, 32 kbit/s": coded(44_100, "mp3", "libmp3lame", 32_000),
    "MP3 at 8 kHz, 16 kbit/s": coded(8_000, "mp3", "libmp3lame", 16_000),
    "AAC, 32 kbit/s": coded(44_100, "ipod", "aac", 32_000),
    "hiss": lambda samples: wav(RATE)(hissing(samples)),
    "quiet": lambda samples: wav(8_000)(samples * np.float32(10 ** (-30 / 20))),
    "clipped": lambda samples: wav(RATE)((samples * (2 / np.abs(samples).max())).clip(-1, 1)),
}
if not can_encode("libopencore_amrnb"):
    del ROUGH["AMR"]
