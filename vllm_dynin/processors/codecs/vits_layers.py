"""Layers of the unit → speech decoder: relative attention, dilated stacks, couplings, spline.

Everything here runs in the direction of inference only, on one request at a time and therefore
without masks. Module names are the checkpoint's, so that weights load by name.

Shapes: tensors are [B, C, T] with B = 1 in serving. Source: EMOVA_speech_tokenizer @ ae4b1b5,
`UVITS/` (`attentions.py`, `modules.py`, `transforms.py`), itself of the VITS lineage.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, T]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] → [B, C, T]."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class RelativeAttention(nn.Module):
    """Self-attention with learned terms for the offsets -window .. window.

    The two offset tables are shared by the heads. Pairs further apart get no relative term but do
    attend to one another.
    """

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.conv_q, self.conv_k = (
            nn.Conv1d(channels, channels, 1),
            nn.Conv1d(channels, channels, 1),
        )
        self.conv_v, self.conv_o = (
            nn.Conv1d(channels, channels, 1),
            nn.Conv1d(channels, channels, 1),
        )
        size = channels // heads
        self.emb_rel_k = nn.Parameter(torch.randn(1, 2 * window + 1, size) * size**-0.5)
        self.emb_rel_v = nn.Parameter(torch.randn(1, 2 * window + 1, size) * size**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] → [B, C, T]."""
        q, k, v = (
            conv(x).unflatten(1, (self.heads, -1)).transpose(2, 3)  # [B, H, T, C / H]
            for conv in (self.conv_q, self.conv_k, self.conv_v)
        )
        q = q * q.shape[-1] ** -0.5
        # offset_TT[i, j] is the row of the tables for the pair (i, j), where it is near.
        steps = torch.arange(x.shape[-1], device=x.device)
        offset_TT = steps[None, :] - steps[:, None] + self.window
        near_TT = (offset_TT >= 0) & (offset_TT <= 2 * self.window)
        index = offset_TT.clamp(0, 2 * self.window).expand(*q.shape[:2], -1, -1)
        relative = (q @ self.emb_rel_k[0].T).gather(-1, index)
        weights = (q @ k.transpose(2, 3) + relative * near_TT).softmax(-1)
        # The weights of the near pairs, regrouped by offset: [B, H, T, 2 * window + 1].
        taps = torch.arange(2 * self.window + 1, device=x.device)
        partner = steps[:, None] + taps[None] - self.window
        inside = (partner >= 0) & (partner < len(steps))
        partner = partner.clamp(0, len(steps) - 1).expand(*q.shape[:2], -1, -1)
        by_offset = weights.gather(-1, partner) * inside
        out = weights @ v + by_offset @ self.emb_rel_v[0]
        return self.conv_o(out.transpose(2, 3).flatten(1, 2))


class FeedForward(nn.Module):
    """Two convolutions over time with a ReLU between."""

    def __init__(self, channels: int, filter_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv1d(channels, filter_channels, kernel, padding=kernel // 2)
        self.conv_2 = nn.Conv1d(filter_channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] → [B, C, T]."""
        return self.conv_2(F.relu(self.conv_1(x)))


class RelativeEncoder(nn.Module):
    """Post-LN transformer over units."""

    def __init__(
        self, channels: int, filter_channels: int, heads: int, layers: int, kernel: int, window: int
    ) -> None:
        super().__init__()
        self.attn_layers = nn.ModuleList(
            RelativeAttention(channels, heads, window) for _ in range(layers)
        )
        self.norm_layers_1 = nn.ModuleList(ChannelNorm(channels) for _ in range(layers))
        self.ffn_layers = nn.ModuleList(
            FeedForward(channels, filter_channels, kernel) for _ in range(layers)
        )
        self.norm_layers_2 = nn.ModuleList(ChannelNorm(channels) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] → [B, C, T]."""
        for attention, norm_1, ffn, norm_2 in zip(
            self.attn_layers, self.norm_layers_1, self.ffn_layers, self.norm_layers_2, strict=True
        ):
            x = norm_1(x + attention(x))
            x = norm_2(x + ffn(x))
        return x


class DilatedStack(nn.Module):
    """Residual depthwise-separable convolutions with dilation kernel^i."""

    def __init__(self, channels: int, kernel: int, layers: int) -> None:
        super().__init__()
        self.convs_sep = nn.ModuleList(
            nn.Conv1d(
                channels,
                channels,
                kernel,
                padding=(kernel // 2) * kernel**i,
                dilation=kernel**i,
                groups=channels,
            )
            for i in range(layers)
        )
        self.convs_1x1 = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in range(layers))
        self.norms_1 = nn.ModuleList(ChannelNorm(channels) for _ in range(layers))
        self.norms_2 = nn.ModuleList(ChannelNorm(channels) for _ in range(layers))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """[B, C, T] → [B, C, T]; the condition, of the same shape, is added at the input."""
        if condition is not None:
            x = x + condition
        for separate, norm_1, mix, norm_2 in zip(
            self.convs_sep, self.norms_1, self.convs_1x1, self.norms_2, strict=True
        ):
            x = x + F.gelu(norm_2(mix(F.gelu(norm_1(separate(x))))))
        return x


SPLINE_BOUND = 5.0
SPLINE_BINS = 10
_MIN_SHARE = 1e-3  # least width and height of a bin (as a share), least derivative
_BIN_EPS = 1e-6
# The outermost derivatives are 1, so that the spline continues as the identity.
_END_DERIVATIVE = math.log(math.exp(1.0 - _MIN_SHARE) - 1.0)


def _knots(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Knots [..., bins + 1] from -bound to bound, and the distances between them."""
    shares = _MIN_SHARE + (1 - _MIN_SHARE * SPLINE_BINS) * logits.softmax(-1)
    knots = F.pad(shares.cumsum(-1), (1, 0)) * (2 * SPLINE_BOUND) - SPLINE_BOUND
    knots[..., 0], knots[..., -1] = -SPLINE_BOUND, SPLINE_BOUND
    return knots, knots.diff(dim=-1)


def inverse_spline(y: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor) -> Tensor:
    """The x with spline(x) = y, for monotone rational-quadratic splines with linear tails.

    Args:
        y: float [...]; outside [-5, 5] the spline is the identity.
        widths: [..., 10] logits of the bins' shares of the x axis.
        heights: [..., 10] logits of their shares of the y axis.
        derivatives: [..., 9] before softplus, at the inner knots.

    Returns:
        float of y's shape.
    """
    x_knots, bin_widths = _knots(widths)
    y_knots, bin_heights = _knots(heights)
    slopes = _MIN_SHARE + F.softplus(F.pad(derivatives, (1, 1), value=_END_DERIVATIVE))
    inside = (y >= -SPLINE_BOUND) & (y <= SPLINE_BOUND)
    target = y.clamp(-SPLINE_BOUND, SPLINE_BOUND)[..., None]
    # The last knot is moved out a little, so that y = bound falls into the last bin.
    edges = torch.cat([y_knots[..., :-1], y_knots[..., -1:] + _BIN_EPS], dim=-1)
    bin_index = (target >= edges).sum(-1, keepdim=True) - 1

    def at(values: Tensor, shift: int = 0) -> Tensor:
        return values.gather(-1, bin_index + shift)[..., 0]

    x0, width, y0, height = at(x_knots), at(bin_widths), at(y_knots), at(bin_heights)
    slope0, slope1, ratio = at(slopes), at(slopes, 1), height / width
    bend = slope0 + slope1 - 2 * ratio
    rise = target[..., 0] - y0
    a = rise * bend + height * (ratio - slope0)
    b = height * slope0 - rise * bend
    c = -ratio * rise
    # b² ≥ 4ac holds exactly; rounding must not turn a zero into a NaN.
    share = 2 * c / (-b - (b.square() - 4 * a * c).clamp_min(0.0).sqrt())
    return torch.where(inside, x0 + share * width, y)


class SplineCoupling(nn.Module):
    """Couples two channels: the second goes through a spline that the first parametrises."""

    def __init__(self, channels: int, kernel: int, layers: int) -> None:
        super().__init__()
        self.channels = channels
        self.pre = nn.Conv1d(1, channels, 1)
        self.convs = DilatedStack(channels, kernel, layers)
        self.proj = nn.Conv1d(channels, 3 * SPLINE_BINS - 1, 1)

    def inverse(self, z: Tensor, condition: Tensor) -> Tensor:
        """[B, 2, T] → [B, 2, T], conditioned on [B, C, T]."""
        first, second = z.chunk(2, dim=1)
        raw = self.proj(self.convs(self.pre(first), condition)).transpose(1, 2)[:, None]
        widths, heights, derivatives = raw.split([SPLINE_BINS, SPLINE_BINS, SPLINE_BINS - 1], -1)
        scale = self.channels**-0.5
        second = inverse_spline(second, widths * scale, heights * scale, derivatives)
        return torch.cat([first, second], dim=1)


class GatedStack(nn.Module):
    """WaveNet-like gated convolutions, conditioned on the style at every layer."""

    def __init__(self, channels: int, kernel: int, layers: int, style_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.ModuleList(
            nn.Conv1d(channels, 2 * channels, kernel, padding=kernel // 2) for _ in range(layers)
        )
        self.res_skip_layers = nn.ModuleList(
            nn.Conv1d(channels, channels if i == layers - 1 else 2 * channels, 1)
            for i in range(layers)
        )
        self.cond_layer = nn.Conv1d(style_channels, 2 * channels * layers, 1)

    def forward(self, h: Tensor, style: Tensor | None) -> Tensor:
        """[B, C, T], style [B, S, 1] or None → [B, C, T]."""
        num_layers = len(self.in_layers)
        conditions = (
            [None] * num_layers if style is None else self.cond_layer(style).chunk(num_layers, 1)
        )
        skip = torch.zeros_like(h)
        for inner, res_skip, condition in zip(
            self.in_layers, self.res_skip_layers, conditions, strict=True
        ):
            u = inner(h) if condition is None else inner(h) + condition
            left, right = u.chunk(2, dim=1)
            out = res_skip(left.tanh() * right.sigmoid())
            if out.shape[1] == h.shape[1]:  # the last layer has no residual half
                return skip + out
            residual, skipped = out.chunk(2, dim=1)
            h, skip = h + residual, skip + skipped
        return skip


class MeanCoupling(nn.Module):
    """Shifts the second half of the channels by a function of the first half."""

    def __init__(
        self, channels: int, hidden: int, kernel: int, layers: int, style_channels: int
    ) -> None:
        super().__init__()
        self.pre = nn.Conv1d(channels // 2, hidden, 1)
        self.enc = GatedStack(hidden, kernel, layers, style_channels)
        self.post = nn.Conv1d(hidden, channels // 2, 1)

    def inverse(self, z: Tensor, style: Tensor | None) -> Tensor:
        """[B, C, T] → [B, C, T]."""
        first, second = z.chunk(2, dim=1)
        return torch.cat([first, second - self.post(self.enc(self.pre(first), style))], dim=1)
