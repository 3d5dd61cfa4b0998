"""Recordings in every form that people send: formats, rates, sample types, channels, damage.

Everything is made here from a few spoken words, with FFmpeg (PyAV) and libsndfile, except for the
damage, which is done to the bytes.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import soxr

SPEECH = Path(__file__).parents[1] / "data" / "speech"
RATE = 16_000
PAUSE = RATE // 10


@cache
def spoken(*words: str, voice: str = "slt") -> np.ndarray:
    """float32 [N] at 16 kHz: digits by their names, one after the other."""
    pause = np.zeros(PAUSE, np.float32)
    parts = [soundfile.read(SPEECH / f"{voice}_{word}.flac", dtype="float32")[0] for word in words]
    return np.concatenate([part for word in parts for part in (pause, word)] + [pause])


def at(rate: int, samples: np.ndarray) -> np.ndarray:
    """The same at another rate."""
    return soxr.resample(samples, RATE, rate) if rate != RATE else samples


class Pipe:
    """A file that can be written and not be gone back in, as a recorder's network connection."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        """Append."""
        self.data += data
        return len(data)


def can_encode(codec: str) -> bool:
    """Whether PyAV's FFmpeg has an encoder; the builds of PyAV 19 have none for AMR."""
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def with_soundfile(
    samples: np.ndarray, rate: int, kind: str, subtype: str, endian: str | None = None
) -> bytes:
    """A file by libsndfile; samples are [N] or [N, channels]."""
    target = io.BytesIO()
    soundfile.write(target, samples, rate, format=kind, subtype=subtype, endian=endian)
    return target.getvalue()


def with_ffmpeg(
    samples: np.ndarray,
    rate: int,
    container: str,
    codec: str,
    *,
    layout: str = "mono",
    is_piped: bool = False,
    picture: str = "",
    tracks: int = 1,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    bit_rate: int | None = None,
) -> bytes:
    """A file by FFmpeg; samples are [N], copied into every channel, or [N, channels].

    Args:
        samples: full scale 1.0.
        rate: Hz.
        container: its muxer.
        codec: its encoder.
        layout: of the channels.
        is_piped: written without going back, so that no length is known.
        picture: encoder of a video track beside the sound; empty for none.
        tracks: how many times the sound is written.
        options: of the muxer.
        codec_options: of the encoder.
        bit_rate: bits a second.
    """
    target: Any = Pipe() if is_piped else io.BytesIO()
    planes = samples if samples.ndim == 2 else samples[:, None]
    with av.open(target, "w", format=container, options=options or {}) as file:
        film = file.add_stream(picture, rate=25) if picture else None
        if film is not None:
            film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
            if picture == "mjpeg":
                film.pix_fmt = "yuvj420p"
        sounds = [
            file.add_stream(codec, rate=rate, layout=layout, options=codec_options or {})
            for _ in range(tracks)
        ]
        if bit_rate:
            for sound in sounds:
                sound.bit_rate = bit_rate
        if film is not None:
            for number in range(25 * len(planes) // rate):
                frame = av.VideoFrame(64, 48, "yuv420p")
                for plane in frame.planes:
                    plane.update(bytes([number % 200]) * plane.buffer_size)
                file.mux(film.encode(frame.reformat(format=film.pix_fmt)))
            file.mux(film.encode(None))
        channels = sounds[0].codec_context.layout.nb_channels
        if planes.shape[1] != channels:
            planes = np.repeat(planes, channels, axis=1)
        for sound in sounds:
            # Frames of a few samples, as a microphone gives them.
            size = sound.codec_context.frame_size or 1024
            to_format = av.AudioResampler(sound.format, sound.layout, rate, frame_size=size)
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(planes.T.astype(np.float32)), "fltp", layout
            )
            frame.sample_rate = rate
            for part in [*to_format.resample(frame), *to_format.resample(None)]:
                file.mux(sound.encode(part))
            file.mux(sound.encode(None))
    return bytes(target.data) if is_piped else target.getvalue()
