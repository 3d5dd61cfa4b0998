"""Blocks of decoded audio → checked, mono, at one rate. No decoder and no torch in here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
SEND = "send a whole file of WAV, FLAC, Ogg, MP3, MP4 or WebM"
"""The end of every message about a file that cannot be read."""

_CANCELLED = 0.1


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
        raise MediaError(f"sample_rate={rate} Hz is below {MIN_SAMPLE_RATE} Hz; say the true one")
    limits.check("max_sample_rate", int(rate), "the sample rate in Hz")
    return int(rate)


def check_size(frames: int, channels: int, rate: int, limits: MediaLimits) -> None:
    """Refuse too many channels, seconds, or values in all.

    Raises:
        MediaError: over a limit.
    """
    _check_amounts(frames / rate, channels, frames * channels, limits)


def _check_amounts(seconds: float, channels: int, values: int, limits: MediaLimits) -> None:
    limits.check("max_channels", channels, "the number of channels")
    limits.check("max_seconds", seconds, "the duration in seconds")
    if values > MAX_DECODED_VALUES:
        raise MediaError(
            f"{channels} channels for {seconds:g} s are over {MAX_DECODED_VALUES:,} values; send "
            "fewer channels or a lower sample rate"
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
    with np.errstate(over="ignore", invalid="ignore"):
        result = np.ascontiguousarray(samples, dtype=np.float32)
    check_finite(result, position)
    return result


class _Stretch:
    """Part of a recording that has one rate: mono in, resampled parts out.

    Args:
        rate: Hz of what is added.
        target_rate: Hz of what comes out.
    """

    def __init__(self, rate: int, target_rate: int) -> None:
        self.rate, self.frames, self._target_rate = rate, 0, target_rate
        self._parts: list[Samples] = []
        self._resampler: soxr.ResampleStream | None = None
        if rate != target_rate:
            self._resampler = soxr.ResampleStream(rate, target_rate, 1, "float32", quality="HQ")

    def add(self, mono: Samples) -> None:
        """Take the next samples."""
        self.frames += len(mono)
        if self._resampler is not None:
            mono = self._resampler.resample_chunk(mono)
        self._parts.append(mono)

    def end(self) -> list[Samples]:
        """All of it; its length is that of `resampled_length`."""
        if self._resampler is None:
            return self._parts
        self._parts.append(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        return of_length(self._parts, resampled_length(self.frames, self.rate, self._target_rate))


def resampled_length(frames: int, rate: int, target_rate: int) -> int:
    """Samples that `frames` at one rate are at another, rounded up.

    Source: `librosa.resample`, which the originals call; soxr itself rounds to the nearest.
    """
    return -(-frames * target_rate // rate)


def of_length(parts: list[Samples], length: int) -> list[Samples]:
    """Cut, or filled up with zeros, which is a matter of one sample.

    Source: `fix_length` in librosa's `resample`.
    """
    missing = length - sum(map(len, parts))
    if missing > 0:
        return [*parts, np.zeros(missing, np.float32)]
    while missing < 0:
        *parts, last = parts
        kept = last[: max(0, len(last) + missing)]
        missing += len(last) - len(kept)
        parts.append(kept)
    return parts


class _Channels:
    """What the channels of a recording have to do with each other.

    Where one is another one turned upside down, as a balanced cable plugged into a stereo socket
    gives it, their mean is silence although both are loud. Looked at are the differences from one
    sample to the next: a hum or an offset that all channels share must not hide what cancels.
    """

    def __init__(self) -> None:
        self._products: dict[int, NDArray[np.float64]] = {}

    def add(self, block: NDArray[Any]) -> None:
        """Count samples [n, channels] in."""
        channels = block.shape[1]
        if channels > 1:
            steps = np.diff(block.astype(np.float64), axis=0)
            products = self._products.setdefault(channels, np.zeros((channels, channels)))
            products += steps.T @ steps

    def signs(self) -> dict[int, NDArray[np.float64]]:
        """Number of channels → the sign of each, where their mean would be next to nothing."""
        found = {}
        for channels, products in self._products.items():
            # Unrelated channels give 1 for this ratio, equal ones their number, opposite ones 0.
            if products.sum() < _CANCELLED * np.trace(products):
                loudest = products[np.argmax(np.diag(products))]
                signs = np.where(loudest < 0, -1.0, 1.0)
                found[channels] = signs * signs[0]  # the first one stays as it is
        return found


def collect(
    open_blocks: Callable[[], Iterator[Block]], target_rate: int, limits: MediaLimits
) -> Samples:
    """Mix to mono, resample and join, counting against the limits on the way.

    The mix is the mean of the channels. Where that is next to nothing because channels cancel each
    other, the blocks are read once more and channels that are upside down are turned.

    Args:
        open_blocks: begins at the first block each time.
        target_rate: Hz.
        limits: of the recording.

    Raises:
        MediaError: no samples, not finite, or over a limit.
    """
    channels = _Channels()
    found = _mixed(open_blocks(), target_rate, limits, channels, {})
    if signs := channels.signs():
        found = _mixed(open_blocks(), target_rate, limits, _Channels(), signs)
    return found


def _mixed(
    blocks: Iterator[Block],
    target_rate: int,
    limits: MediaLimits,
    channels: _Channels,
    signs: dict[int, NDArray[np.float64]],
) -> Samples:
    parts: list[Samples] = []
    stretch: _Stretch | None = None
    values, frames, seconds = 0, 0, 0.0  # seconds: of the stretches that have ended
    for block, rate in blocks:
        if not len(block):
            continue
        if stretch is None or rate != stretch.rate:  # joined files may have different rates
            if stretch is not None:
                seconds += stretch.frames / stretch.rate
                parts += stretch.end()
            stretch = _Stretch(rate, target_rate)
        values += block.size
        duration = seconds + (stretch.frames + len(block)) / rate
        _check_amounts(duration, block.shape[1], values, limits)
        turned = block * signs[block.shape[1]] if block.shape[1] in signs else block
        mono = as_float32(turned.mean(axis=1, dtype=np.float64), frames)
        channels.add(block)
        frames += len(block)
        stretch.add(mono)
    if stretch is None:
        raise MediaError(
            f"the audio has no samples; it is empty or cut off before the first one; {SEND}"
        )
    return np.concatenate([*parts, *stretch.end()])
