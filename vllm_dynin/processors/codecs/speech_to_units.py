"""Speech → units: log-mel front end, SPIRAL encoder, finite scalar quantiser (FSQ).

Twenty-five units a second, each one of 4,096. The encoder ends in hard thresholds, so it runs in
float32 with TF32 off.

Source: EMOVA_speech_tokenizer @ ae4b1b5, `SPIRAL_L2_BN_FSQ_CTC/`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vllm_dynin.processors.codecs.speech_features import LogMel, LogMelConfig
from vllm_dynin.processors.codecs.spiral import STRIDE, FeatureEncoder, SpiralConfig

_FSQ_MARGIN = 1e-3


def fsq_digits(z: Tensor, levels: Sequence[int]) -> Tensor:
    """Quantise each dimension to its levels.

    Args:
        z: float [..., len(levels)], unbounded.
        levels: values per dimension, each even.

    Returns:
        int64 of z's shape, digit d of dimension i in 0 .. levels[i] - 1.
    """
    half = torch.tensor([(n - 1) * (1 - _FSQ_MARGIN) / 2 for n in levels], dtype=z.dtype)
    half = half.to(z.device)
    # PARITY: tan, where the paper on FSQ has atanh; the published thresholds depend on it.
    shift = torch.tan(0.5 / half)
    bounded = torch.tanh(z + shift) * half - 0.5
    offsets = torch.tensor([n // 2 for n in levels], device=z.device)
    return torch.round(bounded).long() + offsets


def fsq_index(digits: Tensor, levels: Sequence[int]) -> Tensor:
    """Unit of a row of digits; dimension 0 is the least significant. int64 [..., D] → [...]."""
    basis = list(itertools.accumulate(levels[:-1], lambda a, b: a * b, initial=1))
    return (digits * torch.tensor(basis, device=digits.device)).sum(-1)


def fsq_unpack(units: Tensor, levels: Sequence[int]) -> Tensor:
    """Digits of units: the inverse of `fsq_index`. int64 [...] → [..., len(levels)]."""
    digits = []
    for count in levels:
        digits.append(units % count)
        units = torch.div(units, count, rounding_mode="floor")
    return torch.stack(digits, dim=-1)


@dataclass(frozen=True, kw_only=True)
class SpeechToUnitsConfig:
    """Sizes of the speech encoder; the defaults are the published model's.

    Args:
        features: front end.
        encoder: conv-transformer.
        levels: FSQ levels per dimension, each even.

    Raises:
        ValueError: the parts do not fit together.
    """

    features: LogMelConfig = field(default_factory=LogMelConfig)
    encoder: SpiralConfig = field(default_factory=SpiralConfig)
    levels: tuple[int, ...] = (8, 8, 8, 8)

    def __post_init__(self) -> None:
        if self.features.num_mels != self.encoder.num_mels or self.features.pad_to % STRIDE:
            raise ValueError(
                f"features of {self.features.num_mels} bands padded to {self.features.pad_to} do "
                f"not fit an encoder of {self.encoder.num_mels} bands and stride {STRIDE}"
            )
        if any(count % 2 or count < 2 for count in self.levels):
            raise ValueError(f"levels={self.levels}: each must be even (odd ones are not used)")

    @property
    def num_units(self) -> int:
        """Size of the codebook."""
        return math.prod(self.levels)

    @property
    def samples_per_unit(self) -> int:
        """Samples of input per unit: N samples give ceil(N / this) units."""
        return self.features.hop * STRIDE

    @classmethod
    def tiny(cls) -> SpeechToUnitsConfig:
        """A size for tests: same graph, constructed and run in milliseconds."""
        return cls(
            features=LogMelConfig(num_mels=16),
            encoder=SpiralConfig(
                num_mels=16,
                low_filters=(32, 48, 48),
                high_filters=(64, 32),
                low_layers=1,
                high_layers=2,
                low_heads=2,
                high_heads=2,
                ffn_factor=2,
                pos_kernel=8,
            ),
            levels=(4, 4, 2),
        )


class SpeechToUnits(nn.Module):
    """The encoder. Parameters are float32 whatever torch's default dtype is."""

    def __init__(self, config: SpeechToUnitsConfig | None = None) -> None:
        super().__init__()
        self.config = config or SpeechToUnitsConfig()
        self.features = LogMel(self.config.features)
        self.feature_encoder = FeatureEncoder(self.config.encoder)
        self.pre_quant = nn.Linear(self.config.encoder.width, len(self.config.levels))
        self.float().eval().requires_grad_(False)

    def latents(self, features_BCT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """What the quantiser sees.

        Args:
            features_BCT: [B, num_mels, T], T a multiple of 4.
            lengths_B: int64, valid frames of each row.

        Returns:
            [B, T/4, len(levels)], and the units of each row.
        """
        hidden_BDT, lengths_B = self.feature_encoder(features_BCT, lengths_B)
        return self.pre_quant(hidden_BDT.transpose(1, 2)), lengths_B

    @torch.inference_mode()
    def forward(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Units of utterances, repeats kept.

        Args:
            waveforms: float32 [N] each, 16 kHz mono, any scale; at least `min_samples` long. A
                row's result does not depend on the others (up to float rounding).

        Returns:
            int64 [ceil(N / 640)] each, values 0 .. num_units - 1.

        Raises:
            ValueError: an utterance is too short or not one row.
        """
        rows = [self.features(waveform) for waveform in waveforms]
        widest = max(features.shape[1] for features, _ in rows)
        batch = torch.stack([F.pad(f, (0, widest - f.shape[1])) for f, _ in rows])
        lengths = torch.tensor([length for _, length in rows], device=batch.device)
        latents, counts = self.latents(batch, lengths)
        units = fsq_index(fsq_digits(latents, self.config.levels), self.config.levels)
        return [row[:count] for row, count in zip(units, counts.tolist(), strict=True)]
