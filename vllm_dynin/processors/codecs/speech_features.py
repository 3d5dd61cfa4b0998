"""Log-mel features: the front end of the speech encoders, in plain PyTorch.

Source: `parts/features.py` (FilterbankFeatures) of EMOVA_speech_tokenizer @ ae4b1b5 as configured
there; mel scale and area norm are Slaney's, which librosa calls `htk=False, norm="slaney"`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LINEAR_HZ = 200.0 / 3.0  # Hz per mel below the knee
_KNEE_HZ, _KNEE_MEL = 1000.0, 15.0
_LOG_STEP = torch.log(torch.tensor(6.4, dtype=torch.float64)).item() / 27.0
PEAK_FLOOR = 1e-5
STD_FLOOR = 1e-5
LOG_FLOOR = 2.0**-24
PRE_EMPHASIS = 0.97


def hz_to_mel(hz: Tensor) -> Tensor:
    """Slaney's mel scale: linear below 1 kHz, logarithmic above. Any shape, Hz ≥ 0."""
    log_part = _KNEE_MEL + torch.log(hz.clamp_min(_KNEE_HZ) / _KNEE_HZ) / _LOG_STEP
    return torch.where(hz < _KNEE_HZ, hz / _LINEAR_HZ, log_part)


def mel_to_hz(mel: Tensor) -> Tensor:
    """Inverse of `hz_to_mel`."""
    return torch.where(
        mel < _KNEE_MEL,
        mel * _LINEAR_HZ,
        _KNEE_HZ * torch.exp((mel.clamp_min(_KNEE_MEL) - _KNEE_MEL) * _LOG_STEP),
    )


def mel_matrix(*, sample_rate: int, n_fft: int, num_mels: int, max_hz: float) -> Tensor:
    """Triangular mel filters of equal area.

    Returns:
        float64 [num_mels, n_fft // 2 + 1]; row m rises between edges m and m+1, falls to m+2.
    """
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64, device="cpu") * (sample_rate / n_fft)
    top = hz_to_mel(torch.tensor(max_hz, dtype=torch.float64, device="cpu")).item()
    edges = mel_to_hz(torch.linspace(0.0, top, num_mels + 2, dtype=torch.float64, device="cpu"))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rise = (bins - low) / (centre - low)
    fall = (high - bins) / (high - centre)
    return torch.minimum(rise, fall).clamp_min(0.0) * (2.0 / (high - low))


@dataclass(frozen=True, kw_only=True)
class LogMelConfig:
    """Sizes of the front end; the defaults are the published encoder's.

    Args:
        sample_rate: Hz of the waveform.
        n_fft, window, hop: samples.
        num_mels: bands between 0 Hz and half the sample rate.
        pad_to: the frame count is padded to a multiple of this.
    """

    sample_rate: int = 16_000
    n_fft: int = 512
    window: int = 320
    hop: int = 160
    num_mels: int = 128
    pad_to: int = 16

    @property
    def min_samples(self) -> int:
        """Shortest waveform: reflect padding needs more than half an FFT, the deviation two frames.

        Kept a little above both, so that a few milliseconds of noise are not taken for speech.
        """
        return max(self.n_fft // 2 + 1, 2 * self.hop + self.hop // 2)


class LogMel(nn.Module):
    """Waveform of one utterance → normalised log-mel frames. Buffers only, no parameter."""

    def __init__(self, config: LogMelConfig, *, is_persistent: bool = True) -> None:
        """`is_persistent`: window and mel matrix are part of the state dict."""
        super().__init__()
        self.config = config
        window = torch.hann_window(config.window, periodic=False, dtype=torch.float64, device="cpu")
        mel = mel_matrix(
            sample_rate=config.sample_rate,
            n_fft=config.n_fft,
            num_mels=config.num_mels,
            max_hz=config.sample_rate / 2,
        )
        self.register_buffer("window", window.float(), persistent=is_persistent)
        self.register_buffer("fb", mel.float()[None], persistent=is_persistent)
        self.window: Tensor
        self.fb: Tensor

    def forward(self, waveform_N: Tensor) -> tuple[Tensor, int]:
        """Features and the number of valid frames.

        Args:
            waveform_N: float32 or float64 [N], N ≥ `config.min_samples`; any scale (peak
                normalised here).

        Returns:
            [num_mels, T] in the waveform's dtype with T a multiple of `pad_to`, zero from the
            second value L = ceil(N / hop) on; each band has mean 0 and deviation 1 over the first
            L frames.

        Raises:
            ValueError: the waveform is not one row or too short.
        """
        config = self.config
        if waveform_N.ndim != 1 or len(waveform_N) < config.min_samples:
            raise ValueError(
                f"waveform of shape {tuple(waveform_N.shape)}: one row of at least "
                f"{config.min_samples} samples is needed ({config.sample_rate} Hz)"
            )
        x = waveform_N / (waveform_N.abs().max() + PEAK_FLOOR)
        x = torch.cat([x[:1], x[1:] - PRE_EMPHASIS * x[:-1]])
        spectrum = torch.stft(
            x,
            config.n_fft,
            config.hop,
            config.window,
            self.window.to(x.dtype),
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()
        log_mel = torch.log(self.fb[0].to(x.dtype) @ power + LOG_FLOOR)
        length = -(-len(waveform_N) // config.hop)
        valid = log_mel[:, :length]
        std = valid.std(dim=1, keepdim=True)  # unbiased
        valid = (valid - valid.mean(dim=1, keepdim=True)) / (std + STD_FLOOR)
        padded = -(-log_mel.shape[1] // config.pad_to) * config.pad_to
        return F.pad(valid, (0, padded - length)), length
