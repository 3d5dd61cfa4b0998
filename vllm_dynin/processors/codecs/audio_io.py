"""Audio in and out: any file, bytes or array → mono float32 at one rate, and samples → file bytes.

Files are read block by block, mixed to mono and resampled on the way, so that memory grows with the
result and not with the rate or the channels of the source. libsndfile reads what it can (WAV, FLAC,
Ogg, MP3, AIFF, …), FFmpeg the rest (MP4, WebM, AAC, …); neither is given a name to open.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import av
import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import ArrayLike, NDArray

from vllm_dynin.processors.codecs.limits import (
    DEFAULT_LIMITS,
    MediaError,
    MediaLimits,
    open_source,
)

Samples = NDArray[np.float32]
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

MIN_SAMPLE_RATE = 1_000
# Ten minutes of 8 channels at 192 kHz: bounds decoding time, which a compressed file does not.
MAX_DECODED_VALUES = 600 * 8 * 192_000
_BLOCK_VALUES = 1 << 18
# Demuxers that read one file and nothing else; playlists, devices and scripts are left out.
_FFMPEG_FORMATS = (
    "aac,ac3,aiff,amr,asf,au,avi,caf,flac,flv,matroska,mov,mp3,mp4,mpeg,mpegts,ogg,w64,wav,webm"
)


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


def _check_rate(rate: Any, limits: MediaLimits) -> int:
    is_number = isinstance(rate, int | float | np.number) and not isinstance(rate, bool)
    if not is_number or rate % 1 != 0:  # infinity and NaN fail this as well
        raise ValueError(f"sample_rate={rate!r} must be a whole number of Hz")
    if rate < MIN_SAMPLE_RATE:
        raise MediaError(f"sample_rate={rate} Hz is below {MIN_SAMPLE_RATE} Hz; check the source")
    limits.check("max_sample_rate", int(rate), "the sample rate in Hz")
    return int(rate)


def _check_size(frames: int, channels: int, rate: int, limits: MediaLimits) -> None:
    limits.check("max_channels", channels, "the number of channels")
    limits.check("max_seconds", frames / rate, "the duration in seconds")
    if frames * channels > MAX_DECODED_VALUES:
        raise MediaError(
            f"{frames} samples in {channels} channels are {frames * channels:,} values, over "
            f"{MAX_DECODED_VALUES:,}; send fewer channels or a lower sample rate"
        )


def _check_finite(samples: NDArray[Any], position: int = 0) -> None:
    if not np.isfinite(samples).all():
        first = position + int(np.flatnonzero(~np.isfinite(samples))[0])
        raise MediaError(
            f"sample {first} is NaN or infinite; the audio is broken where it was made"
        )


def _mono_from_array(
    samples: ArrayLike | torch.Tensor, rate: Any, limits: MediaLimits
) -> tuple[Samples, int]:
    rate = _check_rate(rate, limits)
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
    _check_size(array.size // channels, channels, rate, limits)
    scaled = _full_scale(array)
    mono = scaled.mean(axis=channel_axis, dtype=np.float64) if array.ndim == 2 else scaled
    return _as_float32(mono, 0), rate


def _full_scale(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "f":
        return array
    bits = 8 * array.dtype.itemsize
    offset = 2.0 ** (bits - 1) if array.dtype.kind == "u" else 0.0
    return (array.astype(np.float64) - offset) / 2.0 ** (bits - 1)


def _as_float32(samples: NDArray[Any], position: int) -> Samples:
    """Float32, every value finite: also those that were finite in float64 but are too large."""
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(samples, dtype=np.float32)
    _check_finite(result, position)
    return result


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
                return _collect(_sndfile_blocks(sound, limits), target_rate, limits)
    stream.seek(0)
    try:
        return _collect(_ffmpeg_blocks(stream, limits), target_rate, limits)
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(
            f"this is not audio that can be read (libsndfile: {reason}; FFmpeg: "
            f"{getattr(error, 'strerror', None) or error}); send WAV, FLAC, Ogg, MP3, MP4 or WebM"
        ) from error


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


Block = tuple[NDArray[Any], int]  # float [n, channels] and the rate in Hz


def _sndfile_blocks(sound: soundfile.SoundFile, limits: MediaLimits) -> Iterator[Block]:
    rate = _check_rate(sound.samplerate, limits)
    # The header may claim anything; what is read is counted again in _collect.
    _check_size(max(sound.frames, 0), sound.channels, rate, limits)
    size = max(_BLOCK_VALUES // sound.channels, 1)
    while True:
        try:
            block = sound.read(size, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise MediaError(f"the audio is damaged: {error}") from error
        if not len(block):
            return
        yield block, rate


def _ffmpeg_blocks(stream: BinaryIO, limits: MediaLimits) -> Iterator[Block]:
    options = {"format_whitelist": _FFMPEG_FORMATS, "protocol_whitelist": ""}
    with av.open(stream, mode="r", options=options, metadata_errors="replace") as container:
        if not container.streams.audio:
            raise MediaError("the file has no audio track")
        track = container.streams.audio[0]
        if container.duration is not None:
            seconds = container.duration / av.time_base
            limits.check("max_seconds", seconds, "the duration in seconds")
        for packet in container.demux(track):
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                continue  # one damaged packet; FFmpeg's own tools go on as well
            for frame in frames:
                yield _frame_samples(frame), _check_rate(frame.sample_rate, limits)


def _frame_samples(frame: av.AudioFrame) -> NDArray[Any]:
    """[n, channels] with full scale 1.0, from planar or interleaved samples of any type."""
    try:
        samples = frame.to_ndarray()
    except ValueError as error:  # 64-bit integers
        raise MediaError(f"samples of the type {frame.format.name} are not read") from error
    channels = frame.layout.nb_channels
    interleaved = samples.T if frame.format.is_planar else samples.reshape(-1, channels)
    return _full_scale(interleaved)


def _collect(blocks: Iterator[Block], target_rate: int, limits: MediaLimits) -> Samples:
    """Mix to mono, resample and join, counting against the limits on the way."""
    parts: list[Samples] = []
    resampler: soxr.ResampleStream | None = None
    frames, rate = 0, 0
    for block, block_rate in blocks:
        if frames and block_rate != rate:
            raise MediaError(f"the rate changes from {rate} to {block_rate} Hz within the audio")
        rate = block_rate
        _check_size(frames + len(block), block.shape[1], rate, limits)
        mono = _as_float32(block.mean(axis=1, dtype=np.float64), frames)
        frames += len(block)
        if rate != target_rate:
            if resampler is None:
                resampler = soxr.ResampleStream(rate, target_rate, 1, "float32", quality="HQ")
            mono = resampler.resample_chunk(mono)
        parts.append(mono)
    if not frames:
        raise MediaError("the audio has no samples; it is empty or cut off before the first one")
    if resampler is not None:
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.concatenate(parts)


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
    _check_finite(array)
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
    target = io.BytesIO()
    with av.open(target, "w", format="adts") as container:
        track = container.add_stream("aac", rate=sample_rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = sample_rate
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return target.getvalue()
