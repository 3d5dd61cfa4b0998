"""Group norm that is right in both memory layouts.

With channels last PyTorch's kernel for CPUs takes the variance as E[x²] − E[x]² in float32. Where
values vary little around a large mean, as in flat pictures (documents, white pages), nothing but
rounding is left of that: of x = 3 + 0.01 · randn the result is off by 0.3 instead of 3e-5, and
codes of the picture come out wrong. With channels first the kernel is right, but convolutions are
slower (docs/codecs.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CHUNK = 1 << 18
"""Numbers that are centred together: they stay in a core's cache."""


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm`, with the variance taken around the mean in either layout.

    Arguments and parameters as there; always with weight and bias.
    """

    def forward(self, x: Tensor, *, swish: bool = False) -> Tensor:
        """Normalise.

        Args:
            x: [B, C, H, W]; not modified.
            swish: apply x · sigmoid(x) to the result.

        Returns:
            Of the same shape, dtype and layout.
        """
        is_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        if is_last and not x.is_contiguous() and x.device.type == "cpu":
            if not torch.is_grad_enabled():
                return self._channels_last(x, swish)
            x = x.contiguous()
        y = super().forward(x)
        # In place where no gradient needs the input: one full-resolution tensor less at the peak.
        return F.silu(y, inplace=not torch.is_grad_enabled()) if swish else y

    def _channels_last(self, x: Tensor, swish: bool) -> Tensor:
        batch, channels, height, width = x.shape
        rows_BNC = x.permute(0, 2, 3, 1).view(batch, height * width, channels)
        dtype = torch.promote_types(x.dtype, torch.float32)
        parts = rows_BNC.split(max(1, _CHUNK // channels), dim=1)

        mean_B1C = self._over_groups(rows_BNC.mean(1, dtype=dtype))
        squares_BC = torch.zeros(batch, channels, dtype=dtype)
        for part in parts:
            centred = part - mean_B1C  # float32 where x is bfloat16
            squares_BC += centred.square_().sum(1)
        variance_B1C = self._over_groups(squares_BC / (height * width))
        scale_B1C = self.weight.to(dtype) * torch.rsqrt(variance_B1C + self.eps)
        shift_B1C = self.bias.to(dtype) - mean_B1C * scale_B1C

        result = torch.empty_like(x)  # of the same layout
        out_BNC = result.permute(0, 2, 3, 1).view(batch, height * width, channels)
        for part, out in zip(parts, out_BNC.split(parts[0].shape[1], dim=1), strict=True):
            if x.dtype == dtype:
                torch.addcmul(shift_B1C, part, scale_B1C, out=out)
            else:
                out.copy_(torch.addcmul(shift_B1C, part.to(dtype), scale_B1C))
            if swish:  # here, while these numbers are in the cache
                F.silu(out, inplace=True)
        return result

    def _over_groups(self, values_BC: Tensor) -> Tensor:
        """Each channel's value → the mean of its group, [B, 1, C]."""
        batch, channels = values_BC.shape
        grouped = values_BC.view(batch, self.num_groups, -1).mean(2, keepdim=True)
        width = channels // self.num_groups
        return grouped.expand(-1, -1, width).reshape(batch, 1, channels)
