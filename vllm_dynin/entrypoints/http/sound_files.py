"""Sound in answers: files, whole or made piece by piece while the speech is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from vllm_dynin.codec_runner import Sound
from vllm_dynin.processors.codecs.audio_io import encode_audio, resample

SoundFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]

PCM_RATE = 24_000
"""Samples per second of `pcm`, which has no header to say it: what OpenAI's clients expect."""
_OPUS_RATE = 48_000

MEDIA_TYPES: dict[str, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}

# Format → container, codec and sample format of FFmpeg.
_STREAMED = {
    "mp3": ("mp3", "libmp3lame", "fltp"),
    "opus": ("ogg", "libopus", "flt"),
    "aac": ("adts", "aac", "fltp"),
    "flac": ("flac", "flac", "s16"),
    "wav": ("wav", "pcm_s16le", "s16"),
}
_FLUSHED = {"flush_packets": "1"}
_OGG_PAGES = {"page_duration": "200000"}  # microseconds


def output_rate(sound_format: SoundFormat, rate: int) -> int:
    """Samples per second of a file of sound at `rate`."""
    return {"pcm": PCM_RATE, "opus": _OPUS_RATE}.get(sound_format, rate)


def whole_file(sound: Sound, sound_format: SoundFormat) -> bytes:
    """A sound as a file, with the sizes in its header."""
    rate = output_rate(sound_format, sound.sample_rate)
    waveform = resample(sound.waveform, sound.sample_rate, rate)
    return encode_audio(waveform, rate, sound_format)


class SoundStream:
    """A file made piece by piece, for a client that plays it while it grows.

    A header that would say how long the file is says that it is not known.

    Args:
        sound_format: of the file.
        rate: samples per second of what is fed.
    """

    def __init__(self, sound_format: SoundFormat, rate: int) -> None:
        self._rate = output_rate(sound_format, rate)
        self._resampler = None
        if self._rate != rate:
            self._resampler = soxr.ResampleStream(rate, self._rate, 1, dtype="float32")
        self._written = _Written()
        self._container: Any = None
        if sound_format != "pcm":
            container, codec, self._samples_as = _STREAMED[sound_format]
            options = _FLUSHED | (_OGG_PAGES if container == "ogg" else {})
            self._container = av.open(self._written, "w", format=container, options=options)
            self._track = self._container.add_stream(codec, rate=self._rate, layout="mono")
            self._track.format = self._samples_as
        self._num_samples = 0

    def feed(self, waveform: NDArray[np.float32], *, is_last: bool = False) -> bytes:
        """The next bytes of the file, for the next samples.

        Args:
            waveform: float32 [N] in [-1, 1].
            is_last: nothing follows; the file is closed.
        """
        if self._resampler is not None:
            waveform = self._resampler.resample_chunk(waveform, last=is_last)
        if self._container is None:
            return encode_audio(waveform, self._rate, "pcm") if len(waveform) else b""
        if len(waveform):
            self._encode(waveform)
        if is_last:
            self._container.mux(self._track.encode(None))
            self._container.close()
        return self._written.take()

    def _encode(self, waveform: NDArray[np.float32]) -> None:
        clipped = waveform.clip(-1.0, 1.0)
        if self._samples_as == "s16":
            clipped = np.round(clipped * 32_767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(clipped[None], format=self._samples_as, layout="mono")
        frame.sample_rate, frame.pts = self._rate, self._num_samples
        self._num_samples += len(clipped)
        self._container.mux(self._track.encode(frame))


class _Written:
    """A file that can only be written to, so that FFmpeg does not go back to its header."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: bytes) -> int:
        self._bytes += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._bytes)
        self._bytes.clear()
        return taken


def streamed_file(
    pieces: Iterator[NDArray[np.float32]], sound_format: SoundFormat, rate: int
) -> Iterator[bytes]:
    """A file in pieces, one for each piece of sound and one to end it; none of them is empty."""
    stream = SoundStream(sound_format, rate)
    for piece in pieces:
        if data := stream.feed(piece):
            yield data
    if data := stream.feed(np.zeros(0, np.float32), is_last=True):
        yield data
