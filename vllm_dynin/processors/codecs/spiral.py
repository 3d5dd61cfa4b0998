"""The SPIRAL conv-transformer: log-mel frames → one vector per 40 ms.

Convolutions with strides 2 and 2, a small transformer, two more convolutions, a larger
transformer. Module names are the checkpoint's (`block_modules.{n}`), so that weights load by name.

Shapes: B utterances, C channels, T frames (10 ms at the input, 40 ms behind the second block), D
width, H heads. Source: EMOVA_speech_tokenizer @ ae4b1b5,
`my_conf/st2vec_multi_lingual_…_40ms_20240522.py` and the modules it configures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class SpiralConfig:
    """Sizes of the feature encoder. The defaults are the published model's.

    Args:
        num_mels: channels of the input.
        low_filters: widths of the three blocks before the first transformer; the kernels are
            5, 5, 1 and the strides 2, 2, 1. The last is the first transformer's width.
        high_filters: widths of the two blocks before the second transformer (kernels 5, 1).
        low_layers, high_layers: layers of the two transformers.
        low_heads, high_heads: their attention heads.
        ffn_factor: feed-forward width over model width.
        pos_kernel: taps of the convolution that gives positions.
        pos_groups: its groups; must divide both widths.

    Raises:
        ValueError: heads or groups do not divide a width.
    """

    num_mels: int = 128
    low_filters: tuple[int, int, int] = (384, 512, 512)
    high_filters: tuple[int, int] = (1536, 768)
    low_layers: int = 2
    high_layers: int = 10
    low_heads: int = 8
    high_heads: int = 12
    ffn_factor: int = 4
    pos_kernel: int = 128
    pos_groups: int = 16

    def __post_init__(self) -> None:
        for width, heads in (
            (self.low_filters[-1], self.low_heads),
            (self.high_filters[-1], self.high_heads),
        ):
            if width % heads or width % self.pos_groups:
                raise ValueError(
                    f"a transformer of width {width} needs heads (here {heads}) and pos_groups "
                    f"(here {self.pos_groups}) that divide it"
                )

    @property
    def width(self) -> int:
        """Channels of the output."""
        return self.high_filters[-1]


STRIDE = 4
"""Input frames per output frame (two convolutions of stride 2)."""


def is_valid(lengths_B: Tensor, num_frames: int) -> Tensor:
    """[B, T], True where frame t < lengths_B[b]."""
    return torch.arange(num_frames, device=lengths_B.device)[None] < lengths_B[:, None]


class ConvNormAct(nn.Module):
    """Convolution over time, LayerNorm over channels, optionally ReLU."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, *, has_relu: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(cin, cout, kernel, stride)
        self.norm = nn.LayerNorm(cout)
        self.kernel, self.stride, self.has_relu = kernel, stride, has_relu

    def forward(self, x_BCT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """[B, cin, T], valid frames → [B, cout, T / stride], their valid frames."""
        if self.kernel > 1:
            x_BCT = x_BCT * is_valid(lengths_B, x_BCT.shape[-1])[:, None]
            # PARITY: at stride 2 always (1, 2). The source means to choose by the parity of T but
            # reads the channel axis, which is even in both layers.
            left = 1 if self.stride == 2 else self.kernel // 2
            x_BCT = F.pad(x_BCT, (left, self.kernel - 1 - self.kernel // 2))
        y_BTC = self.norm(self.conv(x_BCT).transpose(1, 2))
        lengths_B = (lengths_B + self.stride - 1) // self.stride
        return (F.relu(y_BTC) if self.has_relu else y_BTC).transpose(1, 2), lengths_B


class SelfAttention(nn.Module):
    """Multi-head attention with separate projections, all with bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        """[B, T, D]; keys where valid_BT is False get no weight."""
        q, k, v = (
            proj(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=valid_BT[:, None, None])
        return self.out_proj(out.transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    """Pre-LN attention and feed-forward."""

    def __init__(self, width: int, heads: int, ffn_width: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, ffn_width), nn.Linear(ffn_width, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        """[B, T, D] → [B, T, D]."""
        x_BTD = x_BTD + self.self_attn(self.self_attn_layer_norm(x_BTD), valid_BT)
        return x_BTD + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x_BTD))))


class Transformer(nn.Module):
    """Positions by a grouped convolution, then layers, then a LayerNorm."""

    def __init__(
        self, width: int, layers: int, heads: int, ffn_width: int, *, kernel: int, groups: int
    ) -> None:
        super().__init__()
        self.pos_conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        self.layers = nn.ModuleList(
            TransformerLayer(width, heads, ffn_width) for _ in range(layers)
        )
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, x_BCT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """[B, D, T], valid frames → the same shapes."""
        valid_BT = is_valid(lengths_B, x_BCT.shape[-1])
        x_BCT = x_BCT * valid_BT[:, None]
        # An even kernel with half of it as padding gives one frame too many, at the end.
        positions = self.pos_conv(x_BCT)[..., : x_BCT.shape[-1]]
        x_BTD = (x_BCT + F.gelu(positions)).transpose(1, 2)
        for layer in self.layers:
            x_BTD = layer(x_BTD, valid_BT)
        return self.layer_norm(x_BTD).transpose(1, 2), lengths_B


class FeatureEncoder(nn.Module):
    """The whole stack of seven blocks."""

    def __init__(self, config: SpiralConfig) -> None:
        super().__init__()
        a, b, c = config.low_filters
        d, e = config.high_filters

        def transformer(width: int, layers: int, heads: int) -> Transformer:
            return Transformer(
                width,
                layers,
                heads,
                width * config.ffn_factor,
                kernel=config.pos_kernel,
                groups=config.pos_groups,
            )

        self.block_modules = nn.ModuleList(
            [
                ConvNormAct(config.num_mels, a, 5, 2, has_relu=True),
                ConvNormAct(a, b, 5, 2, has_relu=True),
                ConvNormAct(b, c, 1, 1, has_relu=False),
                transformer(c, config.low_layers, config.low_heads),
                ConvNormAct(c, d, 5, 1, has_relu=True),
                ConvNormAct(d, e, 1, 1, has_relu=False),
                transformer(e, config.high_layers, config.high_heads),
            ]
        )

    def forward(self, features_BCT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a batch; what lies behind a row's length does not influence it.

        Args:
            features_BCT: float [B, num_mels, T]; T must be a multiple of 4.
            lengths_B: int64, valid frames of each row, 1 .. T.

        Returns:
            [B, width, T/4] and the valid frames of each row, `ceil(ceil(length/2)/2)`.

        Raises:
            ValueError: T is not a multiple of 4.
        """
        if features_BCT.shape[-1] % STRIDE:
            # With (1, 2) padding an odd T emits floor(T/2) frames while lengths round up, so the
            # last unit would be lost.
            raise ValueError(
                f"{features_BCT.shape[-1]} frames are not a multiple of {STRIDE}; pad with zero "
                "frames on the right (they do not change the result)"
            )
        x_BCT = features_BCT
        for block in self.block_modules:
            x_BCT, lengths_B = block(x_BCT, lengths_B)
        return x_BCT, lengths_B
