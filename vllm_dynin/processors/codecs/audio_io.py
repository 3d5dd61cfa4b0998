"""Audio in and out: any file, bytes or array → mono float32 at one rate, and samples → file bytes.

Files are read block by block, mixed to mono and resampled on the way, so that memory grows with the
result and not with the rate or the channels of the source. libsndfile reads what it can (WAV, FLAC,
Ogg, AIFF, …). FFmpeg reads the rest (MP3, MP4, WebM, AAC, …) in a process of its own, see
`media_worker`. Neither is given a name to open.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import ArrayLike

from vllm_dynin.processors.codecs import audio_worker
from vllm_dynin.processors.codecs.audio_blocks import (
    Block,
    Samples,
    as_float32,
    check_finite,
    check_rate,
    check_size,
    collect,
    full_scale,
)
from vllm_dynin.processors.codecs.limits import (
    DEFAULT_LIMITS,
    MediaError,
    MediaLimits,
    open_source,
)
from vllm_dynin.processors.codecs.media_worker import run_worker

AudioSource = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | ArrayLike
    | torch.Tensor
    | tuple[ArrayLike | torch.Tensor, int]
)

_BLOCK_VALUES = 1 << 18
_UNKNOWN_FRAMES = 2**63 - 1
"""What libsndfile says of a FLAC file whose header leaves its length open, as a streamed one does.
It cannot read such a file to its end."""


def load_audio(
    source: AudioSource,
    sample_rate: int | None = None,
    *,
    target_rate: int,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> Samples:
    """Read audio as one channel at one rate.

    Args:
        source: path, file bytes, seekable binary file, samples, or `(samples, sample_rate)`.
            Samples are `[N]` or two-dimensional with the shorter axis as channels; floats count as
            they are (full scale 1.0), integers by the range of their type (uint8 is offset by 128).
        sample_rate: Hz of the samples; must not be given for a file, which says it itself.
        target_rate: Hz wanted. Resampling is soxr's HQ.
        limits: bytes, seconds, channels and rate allowed.

    Returns:
        float32 [N'], the mean of the channels, not normalised; every value finite.

    Raises:
        MediaError: not audio, no samples, NaN or infinite samples, or over a limit.
        ValueError: samples without a rate, or a rate beside a file.
    """
    if isinstance(source, tuple):
        if sample_rate is not None or len(source) != 2:
            raise ValueError("pass (samples, sample_rate), or samples and sample_rate, not both")
        source, sample_rate = cast(tuple[ArrayLike, int], source)
    is_file = isinstance(source, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(
        source, "read"
    )
    if not is_file:
        if sample_rate is None:
            raise ValueError("samples need their sample_rate in Hz; pass it as the second argument")
        mono, rate = _mono_from_array(cast(ArrayLike, source), sample_rate, limits)
        return resample(mono, rate, target_rate)
    if sample_rate is not None:
        raise ValueError(
            f"sample_rate={sample_rate} beside a file: a file says its own rate; leave it out"
        )
    with open_source(cast("str | bytes | BinaryIO", source), limits) as stream:
        return _read_stream(stream, target_rate, limits)


def resample(samples: Samples, sample_rate: int, target_rate: int) -> Samples:
    """float32 [N] at one rate → float32 [about N · target / rate] at another (soxr HQ).

    Source: the original calls `librosa.resample`, whose default in current versions is this one.
    """
    if sample_rate == target_rate:
        return samples
    return cast(Samples, soxr.resample(samples, sample_rate, target_rate, quality="HQ"))


def _mono_from_array(
    samples: ArrayLike | torch.Tensor, rate: Any, limits: MediaLimits
) -> tuple[Samples, int]:
    rate = check_rate(rate, limits)
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    array = np.asarray(samples)
    if array.ndim not in (1, 2) or array.size == 0:
        raise MediaError(
            f"samples of shape {array.shape}: [N], or [N, channels] in either order, is needed"
        )
    if array.dtype.kind not in "fiu":
        raise MediaError(f"samples of type {array.dtype} are not audio; use float32 or int16")
    channel_axis = int(np.argmin(array.shape)) if array.ndim == 2 else 0
    channels = array.shape[channel_axis] if array.ndim == 2 else 1
    check_size(array.size // channels, channels, rate, limits)
    scaled = full_scale(array)
    mono = scaled.mean(axis=channel_axis, dtype=np.float64) if array.ndim == 2 else scaled
    return as_float32(mono, 0), rate


def _read_stream(stream: BinaryIO, target_rate: int, limits: MediaLimits) -> Samples:
    """Decode with libsndfile, or with FFmpeg where libsndfile does not know the format."""
    head = stream.read(3)
    stream.seek(0)
    if head == b"ID3" or (head[0] == 0xFF and head[1:2] >= b"\xe0"):
        # libsndfile's MP3 decoder writes a line to stderr for every damaged frame.
        reason = "MPEG audio is left to FFmpeg"
    else:
        try:
            sound = soundfile.SoundFile(_BoundedSeeks(stream))
        except soundfile.LibsndfileError as error:
            reason = error.error_string.rstrip(".")
        else:
            with sound:
                if sound.frames != _UNKNOWN_FRAMES:
                    return collect(_sndfile_blocks(sound, limits), target_rate, limits)
            stream.seek(0)
            reason = "its header leaves its length open"
    task = {"target_rate": target_rate, "reason": reason}
    raw = run_worker(audio_worker.__name__, stream, task, limits, "audio")
    return np.frombuffer(raw, np.float32).copy()


class _BoundedSeeks:
    """A file in which a seek to before its start is ignored: an error would arise in a C callback.

    Damaged files make libsndfile try it; it then reads on and finds the damage itself.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.read, self.tell = stream.read, stream.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with contextlib.suppress(ValueError, OSError):
            self._stream.seek(offset, whence)
        return self._stream.tell()


def _sndfile_blocks(sound: soundfile.SoundFile, limits: MediaLimits) -> Iterator[Block]:
    rate = check_rate(sound.samplerate, limits)
    # The header may claim anything; what is read is counted again in collect.
    check_size(max(sound.frames, 0), sound.channels, rate, limits)
    size = max(_BLOCK_VALUES // sound.channels, 1)
    while True:
        try:
            block = sound.read(size, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise MediaError(f"the audio is damaged: {error}") from error
        if not len(block):
            return
        yield block, rate


_SNDFILE_OUTPUT = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
AUDIO_FORMATS = (*_SNDFILE_OUTPUT, "aac", "pcm")
"""Names that `encode_audio` takes. `pcm` is headerless 16-bit little-endian."""

_OPUS_RATE = 48_000


def encode_audio(samples: ArrayLike, sample_rate: int, audio_format: str = "wav") -> bytes:
    """Samples as a file.

    Args:
        samples: float [N] with full scale 1.0; what lies outside [-1, 1] is clipped.
        sample_rate: Hz. Opus knows few rates, so it is resampled to 48 kHz.
        audio_format: one of `AUDIO_FORMATS`. All but the lossy ones hold 16 bits.

    Returns:
        The file's bytes.

    Raises:
        ValueError: unknown format, not one channel, or NaN.
    """
    array = np.asarray(samples, dtype=np.float32)
    if audio_format not in AUDIO_FORMATS:
        raise ValueError(f"audio format {audio_format!r}: choose one of {', '.join(AUDIO_FORMATS)}")
    if array.ndim != 1 or not array.size:
        raise ValueError(f"samples of shape {array.shape}: one channel [N] with N ≥ 1 is needed")
    check_finite(array)
    array = array.clip(-1.0, 1.0)
    if audio_format == "pcm":
        return np.round(array * 32767.0).astype("<i2").tobytes()
    if audio_format == "aac":
        return _encode_aac(array, sample_rate)
    if audio_format == "opus" and sample_rate != _OPUS_RATE:
        array, sample_rate = resample(array, sample_rate, _OPUS_RATE), _OPUS_RATE
    container, subtype = _SNDFILE_OUTPUT[audio_format]
    target = io.BytesIO()
    with soundfile.SoundFile(
        target, "w", sample_rate, 1, subtype, format=container
    ) as sound:  # in blocks: the Vorbis encoder overflows its stack on one long write
        for start in range(0, len(array), _BLOCK_VALUES):
            sound.write(array[start : start + _BLOCK_VALUES])
    return target.getvalue()


def _encode_aac(samples: Samples, sample_rate: int) -> bytes:
    import av  # FFmpeg only where it is needed, and here never on what strangers send

    target = io.BytesIO()
    with av.open(target, "w", format="adts") as container:
        track = container.add_stream("aac", rate=sample_rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = sample_rate
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return target.getvalue()
