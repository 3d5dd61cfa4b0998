"""Harmonics plus shaped noise: the vocoder of the toy speech codec.

All tensors are float32, whatever torch's default dtype is (vLLM sets bfloat16).

Shapes: T frames of 10 ms, K mel bands, F frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm_dynin.processors.codecs.speech_features import hz_to_mel

HOP = 160
SAMPLE_RATE = 16_000
_NYQUIST = SAMPLE_RATE / 2
_NOISE_FFT = 2 * HOP
_BLOCK_FRAMES = 100
# Above about this frequency voiced speech is noise as well.
_VOICED_TOP_HZ, _VOICED_SLOPE_HZ = 5_500.0, 500.0
_MIN_HZ = 40.0


def vocode(
    envelope_TK: Tensor,
    voicing_T: Tensor,
    hz_T: Tensor,
    generator: torch.Generator | None,
    warp: float = 1.0,
) -> Iterator[Tensor]:
    """Make sound block by block, so that memory does not grow with the length.

    Args:
        envelope_TK: natural log of the power density in each band, 0 for white noise of variance 1.
        voicing_T: share of the low bands' power in harmonics, 0 .. 1.
        hz_T: pitch, Hz.
        generator: draws the noise; advanced.
        warp: stretches the envelope along frequency (a shorter vocal tract is above 1).

    Yields:
        float32 [n · 160] in [-1, 1], one second each but for the last.
    """
    num_frames, hz_T = len(hz_T), hz_T.clamp_min(_MIN_HZ)
    phase = 0.0
    window = torch.hann_window(_NOISE_FFT, dtype=torch.float32).sqrt()
    before = torch.zeros(
        HOP, dtype=torch.float32
    )  # noise that the next block's first window also covers
    tail = torch.zeros(HOP, dtype=torch.float32)
    for start in range(0, num_frames, _BLOCK_FRAMES):
        stop = min(start + _BLOCK_FRAMES, num_frames)
        # One frame more to move towards; at the very end the last frame is held.
        index = torch.arange(start, stop + 1).clamp(max=num_frames - 1)
        voiced, phase = _harmonics(envelope_TK[index], voicing_T[index], hz_T[index], phase, warp)
        fresh = torch.randn((stop - start) * HOP, generator=generator, dtype=torch.float32)
        white = torch.cat([before, fresh])
        before = fresh[-HOP:]
        shaped = _shape_noise(white, envelope_TK[start:stop], voicing_T[start:stop], window, warp)
        shaped[:HOP] += tail
        tail = shaped[-HOP:]
        yield torch.tanh(voiced + shaped[:-HOP])


def _power_at(envelope_TK: Tensor, hz: Tensor, warp: float) -> Tensor:
    """Power density at frequencies [F] or [T, F] → [T, F], between bands by interpolated logs."""
    num_mels = envelope_TK.shape[1]
    top = hz_to_mel(torch.tensor(_NYQUIST, dtype=torch.float64)).item()
    # Band k is centred at mel (k + 1) · top / (K + 1).
    position = hz_to_mel(hz / warp) / top * (num_mels + 1) - 1
    position = position.clamp(0, num_mels - 1).expand(len(envelope_TK), -1)
    low = position.long().clamp(max=num_mels - 2)
    left, right = envelope_TK.gather(1, low), envelope_TK.gather(1, low + 1)
    return torch.exp(left + (right - left) * (position - low))


def _periodic_share(hz: Tensor, voicing_T1: Tensor) -> Tensor:
    return voicing_T1 * torch.sigmoid((_VOICED_TOP_HZ - hz) / _VOICED_SLOPE_HZ)


def _harmonics(
    envelope: Tensor, voicing: Tensor, hz: Tensor, phase: float, warp: float
) -> tuple[Tensor, float]:
    """Sinusoids from the first to the last of T + 1 frames.

    Returns:
        [T · HOP] samples, and the phase (in turns) with which the next block goes on.
    """
    numbers = torch.arange(1, max(int(_NYQUIST / hz.min()), 1) + 1)
    harmonic_hz = hz[:, None] * numbers
    # A sinusoid of amplitude A every hz carries A²/2 where noise carries density · hz / Nyquist.
    power = 2 * _power_at(envelope, harmonic_hz, warp) * hz[:, None] / _NYQUIST
    amplitude = (power * _periodic_share(harmonic_hz, voicing[:, None])).sqrt()
    amplitude = amplitude * (harmonic_hz < _NYQUIST)
    ramp = (torch.arange(HOP, dtype=torch.float32) / HOP)[None, :, None]
    per_sample = torch.lerp(amplitude[:-1, None], amplitude[1:, None], ramp).flatten(0, 1)
    hz_sample = torch.lerp(hz[:-1, None], hz[1:, None], ramp[..., 0]).flatten()
    turns = phase + hz_sample.double().cumsum(0) / SAMPLE_RATE
    angles = (turns[:, None] * numbers % 1.0).float() * (2 * math.pi)
    return (per_sample * angles.sin()).sum(1), float(turns[-1] % 1.0)


def _shape_noise(
    white: Tensor, envelope: Tensor, voicing: Tensor, window: Tensor, warp: float
) -> Tensor:
    """White noise [(T + 1) · HOP] → the same length with each frame's spectrum, overlap-added."""
    hz = torch.fft.rfftfreq(_NOISE_FFT, 1 / SAMPLE_RATE, dtype=torch.float32)
    power = _power_at(envelope, hz, warp) * (1 - _periodic_share(hz[None], voicing[:, None]))
    spectra = torch.fft.rfft(white.unfold(0, _NOISE_FFT, HOP) * window)
    shaped = torch.fft.irfft(spectra * power.sqrt(), _NOISE_FFT) * window
    out = F.pad(shaped[:, :HOP].flatten(), (0, HOP))
    out[HOP:] += shaped[:, HOP:].flatten()
    return out
