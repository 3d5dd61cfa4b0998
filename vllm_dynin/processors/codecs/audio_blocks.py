"""Blocks of decoded audio → checked, mono, at one rate. No decoder and no torch in here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits

Samples = NDArray[np.float32]
Block = tuple[NDArray[Any], int]  # float [n, channels] and the rate in Hz

MIN_SAMPLE_RATE = 1_000
# Ten minutes of 8 channels at 192 kHz: bounds decoding time, which a compressed file does not.
MAX_DECODED_VALUES = 600 * 8 * 192_000


def check_rate(rate: Any, limits: MediaLimits) -> int:
    """The rate as an int.

    Raises:
        ValueError: no whole number.
        MediaError: below `MIN_SAMPLE_RATE` or over the limit.
    """
    is_number = isinstance(rate, int | float | np.number) and not isinstance(rate, bool)
    if not is_number or rate % 1 != 0:  # infinity and NaN fail this as well
        raise ValueError(f"sample_rate={rate!r} must be a whole number of Hz")
    if rate < MIN_SAMPLE_RATE:
        raise MediaError(f"sample_rate={rate} Hz is below {MIN_SAMPLE_RATE} Hz; check the source")
    limits.check("max_sample_rate", int(rate), "the sample rate in Hz")
    return int(rate)


def check_size(frames: int, channels: int, rate: int, limits: MediaLimits) -> None:
    """Refuse too many channels, seconds, or values in all.

    Raises:
        MediaError: over a limit.
    """
    limits.check("max_channels", channels, "the number of channels")
    limits.check("max_seconds", frames / rate, "the duration in seconds")
    if frames * channels > MAX_DECODED_VALUES:
        raise MediaError(
            f"{frames} samples in {channels} channels are {frames * channels:,} values, over "
            f"{MAX_DECODED_VALUES:,}; send fewer channels or a lower sample rate"
        )


def check_finite(samples: NDArray[Any], position: int = 0) -> None:
    """Refuse NaN and infinity; `position` is the number of the first sample, for the message.

    Raises:
        MediaError: a sample is not finite.
    """
    if not np.isfinite(samples).all():
        first = position + int(np.flatnonzero(~np.isfinite(samples))[0])
        raise MediaError(
            f"sample {first} is NaN or infinite; the audio is broken where it was made"
        )


def full_scale(array: NDArray[Any]) -> NDArray[Any]:
    """Integers divided by their type's range (unsigned ones re-centred); floats as they are."""
    if array.dtype.kind == "f":
        return array
    bits = 8 * array.dtype.itemsize
    offset = 2.0 ** (bits - 1) if array.dtype.kind == "u" else 0.0
    return (array.astype(np.float64) - offset) / 2.0 ** (bits - 1)


def as_float32(samples: NDArray[Any], position: int) -> Samples:
    """Float32, every value finite: also those that were finite in float64 but are too large."""
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(samples, dtype=np.float32)
    check_finite(result, position)
    return result


def collect(blocks: Iterator[Block], target_rate: int, limits: MediaLimits) -> Samples:
    """Mix to mono, resample and join, counting against the limits on the way."""
    parts: list[Samples] = []
    resampler: soxr.ResampleStream | None = None
    frames, rate = 0, 0
    for block, block_rate in blocks:
        if frames and block_rate != rate:
            raise MediaError(f"the rate changes from {rate} to {block_rate} Hz within the audio")
        rate = block_rate
        check_size(frames + len(block), block.shape[1], rate, limits)
        mono = as_float32(block.mean(axis=1, dtype=np.float64), frames)
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
