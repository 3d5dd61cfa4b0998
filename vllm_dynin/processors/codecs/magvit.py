"""The MAGVIT-v2 image tokenizer's network: pixels → latents, signs → pixels.

A ResNet encoder and decoder with one attention block at the lowest resolution each. Module names
are those of the published checkpoint (`snu-aidas/magvitv2`, `showlab/magvitv2`), 382 tensors.

Source: Dynin-Omni `models/modeling_magvitv2.py`, `models/common_modules.py` (d6e3ca8); graph, names
and shapes are pinned by tests/unit/codecs/test_magvit.py.
Shape legend: B batch, C channels, H × W pixels, h × w the latent grid, K bits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vllm_dynin.processors.codecs import lfq
from vllm_dynin.processors.codecs.group_norm import GroupNorm

# Query rows of the attention handled at once. Weights then take rows × h·w numbers instead of
# (h·w)², whatever kernel is picked (with one head of 512 CUDA's flash kernels do not apply).
_ATTENTION_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class MagvitConfig:
    """Sizes of the network; the defaults are the published model's.

    Args:
        channels: base width.
        encoder_multipliers: width of each level over `channels`, full resolution first.
        encoder_blocks: residual blocks of each level.
        decoder_multipliers: the decoder's, which differ in the published model.
        decoder_blocks: the decoder's.
        num_bits: K; there are 2^K codes.
        norm_groups: groups of every group norm; divides every width.

    Raises:
        ValueError: the lists differ in length, or a number does not fit.
    """

    channels: int = 128
    encoder_multipliers: tuple[int, ...] = (1, 2, 2, 4, 4)
    encoder_blocks: tuple[int, ...] = (4, 3, 4, 3, 4)
    decoder_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_blocks: tuple[int, ...] = (4, 4, 3, 4, 3)
    num_bits: int = 13
    norm_groups: int = 32

    def __post_init__(self) -> None:
        lists = (
            self.encoder_multipliers,
            self.encoder_blocks,
            self.decoder_multipliers,
            self.decoder_blocks,
        )
        if len({len(numbers) for numbers in lists}) != 1 or not lists[0]:
            raise ValueError(f"{self!r}: the four lists need one entry per level, equally many")
        if any(number < 1 for numbers in lists for number in numbers) or self.channels < 1:
            raise ValueError(f"{self!r}: widths and block counts must be positive")
        if not 1 <= self.num_bits <= 24:
            raise ValueError(
                f"num_bits={self.num_bits} must lie in 1..24 (the codebook is a table)"
            )
        if self.norm_groups < 1 or self.channels % self.norm_groups:
            raise ValueError(f"norm_groups={self.norm_groups} must divide channels={self.channels}")

    @classmethod
    def toy(cls) -> MagvitConfig:
        """The same graph at 1/600 of the size, 4×4 pixels to a code: for tests and demos.

        One norm group, because with more of them a small network forgets the brightness.
        """
        return cls(
            channels=16,
            encoder_multipliers=(1, 1, 2),
            encoder_blocks=(1, 1, 1),
            decoder_multipliers=(1, 1, 2),
            decoder_blocks=(1, 1, 1),
            norm_groups=1,
        )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> MagvitConfig:
        """Rebuild from what `to_dict` gave (after JSON: lists for tuples)."""
        values: dict[str, Any] = {}
        for name, value in fields.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable fields."""
        return asdict(self)

    @property
    def patch(self) -> int:
        """Pixels per code along each side: 16 in the published model."""
        return 2 ** (len(self.encoder_multipliers) - 1)


class Magvit(nn.Module):
    """Encoder, decoder and the quantiser's two (computable) buffers.

    `encoder`: float32 [B, 3, H, W] in [-1, 1] → latents [B, K, H/patch, W/patch].
    `decoder`: ±1 [B, K, h, w] → [B, 3, h·patch, w·patch], nominally [-1, 1], unclamped.
    """

    config_class = MagvitConfig

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantize(config.num_bits)


class Quantize(nn.Module):
    """The buffers the published checkpoint carries; `lfq` computes without them."""

    def __init__(self, num_bits: int) -> None:
        super().__init__()
        self.register_buffer("embedding", lfq.codebook(num_bits))
        self.register_buffer("power_vals", lfq.bit_weights(num_bits))


class Encoder(nn.Module):
    """Pixels → latents; the sign of each latent is a bit."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        widths = [config.channels * m for m in config.encoder_multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                widths[max(level - 1, 0)],
                width,
                config.encoder_blocks[level],
                groups,
                downsample=level < last,
            )
            for level, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1], groups)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], config.num_bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.num_bits, config.num_bits, 1)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Latents [B, K, h, w] before the threshold."""
        x = self.conv_in(pixels_B3HW)
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(self.norm_out(self.mid(x), swish=True)))


class Decoder(nn.Module):
    """Signs → pixels. `up.{L}` is indexed by level, so the last in the list runs first."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        widths = [config.channels * m for m in config.decoder_multipliers]
        last = len(widths) - 1
        self.post_quant_conv = nn.Conv2d(config.num_bits, config.num_bits, 1)
        self.conv_in = nn.Conv2d(config.num_bits, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        self.up = nn.ModuleList(
            Level(
                widths[min(level + 1, last)],
                width,
                config.decoder_blocks[level],
                groups,
                upsample=level > 0,
            )
            for level, width in enumerate(widths)
        )
        self.norm_out = _norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, signs_BKhw: Tensor) -> Tensor:
        """Pixels [B, 3, H, W], unclamped."""
        x = self.mid(self.conv_in(self.post_quant_conv(signs_BKhw)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(self.norm_out(x, swish=True))


class Level(nn.Module):
    """Residual blocks at one resolution, then a change of resolution by two, or none."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        groups: int,
        *,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(in_channels if i == 0 else out_channels, out_channels, groups)
            for i in range(num_blocks)
        )
        self.downsample = Downsample(out_channels) if downsample else None
        self.upsample = Upsample(out_channels) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] → [B, out, H/2 or H or 2H, …]."""
        for block in self.block:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return x if self.upsample is None else self.upsample(x)


class ResBlock(nn.Module):
    """Norm, swish, 3×3 convolution, twice, added to the input (1×1-projected if widths differ)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        is_same = in_channels == out_channels
        self.nin_shortcut = None if is_same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] → [B, out, H, W]."""
        y = self.conv1(self.norm1(x, swish=True))
        y = self.conv2(self.norm2(y, swish=True))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + y


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups)
        self.attn_1 = Attention(channels, groups)
        self.block_2 = ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] → the same."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Attention(nn.Module):
    """One head over all positions of the grid, with 1×1 convolutions for q, k, v and the output."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] → the same; memory for the weights is _ATTENTION_ROWS × h·w per image."""
        normed = self.norm(x)
        q, k, v = (
            projection(normed).flatten(2).transpose(1, 2).unsqueeze(1)  # [B, 1, h·w, C]
            for projection in (self.q, self.k, self.v)
        )
        rows = [F.scaled_dot_product_attention(part, k, v) for part in q.split(_ATTENTION_ROWS, 2)]
        attended = torch.cat(rows, dim=2).squeeze(1).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(attended)


class Downsample(nn.Module):
    """Halve: one zero column on the right and one zero row below, then a 3×3 stride-2 window."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H/2, W/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double by repetition, then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _norm(channels: int, groups: int) -> GroupNorm:
    return GroupNorm(groups, channels, eps=1e-6)
