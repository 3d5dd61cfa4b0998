"""The waveform generator (HiFi-GAN v1): latent frames → samples, whole or piece by piece.

Convolutions only, so a sample depends on a bounded stretch of frames. `Generator.stream` uses that:
it runs the network on overlapping stretches and keeps what each stretch determines, which gives the
samples of one run over everything in memory that does not grow with the length.

Source: EMOVA_speech_tokenizer @ ae4b1b5, `UVITS/models.py` (`Generator`) and `modules.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SLOPE = 0.1
_LAST_SLOPE = 0.01  # the source leaves the slope out before the last convolution
_END_TAPS = 7


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Sizes of the generator; the defaults are the published model's.

    Args:
        initial_channels: channels before the first upsampling; each stage halves them.
        upsample_rates: factor of each stage.
        upsample_kernels: taps of each stage's transposed convolution.
        resblock_kernels: taps of the residual blocks that are averaged in each stage.
        resblock_dilations: dilations within every residual block.

    Raises:
        ValueError: a stage would not multiply the length by exactly its rate.
    """

    initial_channels: int = 512
    upsample_rates: tuple[int, ...] = (8, 8, 2, 2)
    upsample_kernels: tuple[int, ...] = (16, 16, 4, 4)
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[int, ...] = (1, 3, 5)

    def __post_init__(self) -> None:
        pairs = list(zip(self.upsample_rates, self.upsample_kernels, strict=True))
        if any(kernel < rate or (kernel - rate) % 2 for rate, kernel in pairs):
            raise ValueError(
                f"upsample (rate, kernel) pairs {pairs}: kernel - rate must be even and not "
                "negative, so that a stage multiplies the length by its rate"
            )
        if self.initial_channels % 2 ** len(pairs):
            raise ValueError(
                f"initial_channels={self.initial_channels} cannot be halved {len(pairs)} times"
            )

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.upsample_rates)

    @property
    def context_frames(self) -> int:
        """Frames on each side that can influence a frame's samples (the receptive field)."""
        resblock = max(
            sum((kernel // 2) * (dilation + 1) for dilation in self.resblock_dilations)
            for kernel in self.resblock_kernels
        )
        context = _END_TAPS // 2
        for rate, kernel in reversed(
            list(zip(self.upsample_rates, self.upsample_kernels, strict=True))
        ):
            context = (context + resblock + kernel - 1 - (kernel - rate) // 2) // rate
        return context + _END_TAPS // 2


class ResBlock(nn.Module):
    """Residual pairs of a dilated and a plain convolution."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        half = kernel // 2
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, padding=half * d, dilation=d) for d in dilations
        )
        self.convs2 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, padding=half) for _ in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] → [B, C, T]."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, _SLOPE)), _SLOPE))
        return x


class Generator(nn.Module):
    """Latents [B, C, T] → waveform [B, 1, hop · T] in (-1, 1)."""

    def __init__(self, config: GeneratorConfig, channels: int, style_channels: int) -> None:
        super().__init__()
        self.config = config
        width = config.initial_channels
        self.conv_pre = nn.Conv1d(channels, width, _END_TAPS, padding=_END_TAPS // 2)
        self.cond = nn.Conv1d(style_channels, width, 1)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernels, strict=True):
            self.ups.append(
                nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2)
            )
            width //= 2
            self.resblocks.extend(
                ResBlock(width, kernel, config.resblock_dilations)
                for kernel in config.resblock_kernels
            )
        self.conv_post = nn.Conv1d(width, 1, _END_TAPS, padding=_END_TAPS // 2, bias=False)

    def forward(self, z: Tensor, style: Tensor | None) -> Tensor:
        """Generate from all frames at once.

        Args:
            z: float [B, C, T].
            style: [B, S, 1], or None for no conditioning.

        Returns:
            [B, 1, hop · T].
        """
        x = self.conv_pre(z)
        if style is not None:
            x = x + self.cond(style)
        per_stage = len(self.config.resblock_kernels)
        for stage, upsample in enumerate(self.ups):
            x = upsample(F.leaky_relu(x, _SLOPE))
            blocks = self.resblocks[stage * per_stage : (stage + 1) * per_stage]
            total = blocks[0](x)
            for block in blocks[1:]:
                total = total + block(x)
            x = total / per_stage
        return torch.tanh(self.conv_post(F.leaky_relu(x, _LAST_SLOPE)))

    def stream(self, z: Tensor, style: Tensor | None, chunk_frames: int) -> Iterator[Tensor]:
        """The output of `forward` in pieces of `chunk_frames · hop` samples (the last is shorter).

        Equal to `forward` up to the rounding of convolutions over another length. The extra work is
        2 · `config.context_frames` frames per piece.

        Raises:
            ValueError: chunk_frames is not positive.
        """
        if chunk_frames < 1:
            raise ValueError(f"chunk_frames={chunk_frames}: at least one frame per piece is needed")
        context, hop, num_frames = self.config.context_frames, self.config.hop, z.shape[-1]
        for start in range(0, num_frames, chunk_frames):
            stop = min(start + chunk_frames, num_frames)
            left = max(start - context, 0)
            right = min(stop + context, num_frames)
            piece = self(z[..., left:right], style)
            yield piece[..., (start - left) * hop : (stop - left) * hop]
