"""Audio in and out: any file, bytes or array → mono float32 at one rate, and samples → file bytes.

Files are read block by block, mixed to mono and resampled on the way, so that memory grows with the
result and not with the rate or the channels of the source. Plain samples in WAV files are read here
(`wav`); everything else goes to libsndfile and FFmpeg in a process of its own (`audio_worker`).
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
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
    check_finite,
    check_rate,
    check_size,
    collect,
    full_scale,
    of_length,
    resampled_length,
)
from vllm_dynin.processors.codecs.limits import (
    DEFAULT_LIMITS,
    MediaError,
    MediaLimits,
    open_source,
)
from vllm_dynin.processors.codecs.media_worker import run_worker
from vllm_dynin.processors.codecs.wav import find_wav, wav_blocks, with_true_size

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
        float32 [⌈N · target_rate / rate⌉], the mean of the channels (of which one that is another
        one upside down is turned first), not normalised; every value finite.

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
        return collect(
            _array_blocks(cast(ArrayLike, source), sample_rate, limits), target_rate, limits
        )
    if sample_rate is not None:
        raise ValueError(
            f"sample_rate={sample_rate} beside a file: a file says its own rate; leave it out"
        )
    with open_source(cast("str | bytes | BinaryIO", source), limits) as stream:
        return _read_stream(stream, target_rate, limits)


def resample(samples: Samples, sample_rate: int, target_rate: int) -> Samples:
    """float32 [N] at one rate → float32 [⌈N · target / rate⌉] at another (soxr HQ).

    Source: the original calls `librosa.resample`, whose default in current versions is this one.
    """
    if sample_rate == target_rate:
        return samples
    found = soxr.resample(samples, sample_rate, target_rate, quality="HQ")
    length = resampled_length(len(samples), sample_rate, target_rate)
    return np.concatenate(of_length([found], length))


def _array_blocks(
    samples: ArrayLike | torch.Tensor, rate: Any, limits: MediaLimits
) -> Callable[[], Iterator[Block]]:
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
    frames = array.reshape(-1, 1) if array.ndim == 1 else array
    if frames.shape[0] < frames.shape[1]:
        frames = frames.T
    check_size(len(frames), frames.shape[1], rate, limits)
    step = max(_BLOCK_VALUES // frames.shape[1], 1)

    def blocks() -> Iterator[Block]:
        for start in range(0, len(frames), step):
            yield full_scale(frames[start : start + step]), rate

    return blocks


def _read_stream(stream: BinaryIO, target_rate: int, limits: MediaLimits) -> Samples:
    """Plain samples here, everything else in a process of its own."""
    wav = find_wav(stream)
    if wav is not None and wav.is_plain:
        return collect(lambda: wav_blocks(stream, wav, limits, _BLOCK_VALUES), target_rate, limits)
    if wav is not None and not wav.has_true_size:
        stream = with_true_size(stream, wav)
    task = {"target_rate": target_rate}
    raw = run_worker(audio_worker.__name__, stream, task, limits, "audio")
    return np.frombuffer(raw, np.float32).copy()


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
