"""A toy image tokenizer that needs no training: one bit says whether a cell of pixels is bright.

A code covers a square of cells × cells cells; the bits of its cells are the signs of
(cell mean - threshold), quantised by the same `lfq` as the real tokenizer. Images made of
two-level cells (an enlarged handwritten digit, thresholded) come back exactly, and codes → image →
codes is the identity for every code. Tests and the tiny checkpoint use it in place of `magvit`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vllm_dynin.processors.codecs.magvit import Quantize

# Half the distance two grey levels of an 8-bit image can be confused by, in units of [-1, 1].
_MARGIN = 2 / 255


@dataclass(frozen=True, kw_only=True)
class PatchThresholdConfig:
    """Sizes; the defaults give 16 codes of 16×16 pixels, so an enlarged 8×8 digit is 4×4 codes.

    Args:
        cell: pixels along each side of a cell.
        cells: cells along each side of a code.
        channels: 1 keeps brightness only, 3 gives every colour channel bits of its own.

    Raises:
        ValueError: not positive, channels neither 1 nor 3, or more than 2^24 codes.
    """

    cell: int = 8
    cells: int = 2
    channels: int = 1

    def __post_init__(self) -> None:
        if self.cell < 1 or self.cells < 1 or self.channels not in (1, 3) or self.num_bits > 24:
            raise ValueError(
                f"{self!r}: cell and cells must be positive, channels 1 or 3, and "
                f"channels·cells² = {self.num_bits} bits at most 24"
            )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> PatchThresholdConfig:
        """Rebuild from what `to_dict` gave."""
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable fields."""
        return asdict(self)

    @property
    def num_bits(self) -> int:
        """K; there are 2^K codes."""
        return self.channels * self.cells**2

    @property
    def patch(self) -> int:
        """Pixels per code along each side."""
        return self.cell * self.cells


class PatchThreshold(nn.Module):
    """Same interface as `magvit.Magvit`: `encoder`, `decoder` and the quantiser's buffers."""

    config_class = PatchThresholdConfig

    def __init__(self, config: PatchThresholdConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = PatchEncoder(config)
        self.decoder = PatchDecoder(config)
        self.quantize = Quantize(config.num_bits)

    def fit(self, pixels_B3HW: Tensor) -> None:
        """Set the two decoded levels to the mean dark and the mean bright cell of these images.

        Args:
            pixels_B3HW: float32 in [-1, 1].

        Raises:
            ValueError: some channel has no dark or no bright cell, or they are too close to the
                threshold for codes to survive a round trip through 8-bit pixels.
        """
        cells_BCHW = self.encoder.cells(pixels_B3HW)
        is_bright = cells_BCHW > self.encoder.threshold[:, None, None]
        levels = [
            torch.stack([part.mean() for part in _by_channel(cells_BCHW, mask)])
            for mask in (~is_bright, is_bright)
        ]
        self.decoder.levels.copy_(torch.stack(levels))
        self.check()

    def check(self) -> None:
        """Make sure every code survives codes → 8-bit image → codes.

        Raises:
            ValueError: a level is outside [-1, 1] or not clearly on its side of the threshold.
        """
        dark_C, bright_C = self.decoder.levels
        threshold_C = self.encoder.threshold
        # Written so that NaN (the mean of no cell) fails.
        is_fine = (dark_C >= -1) & (dark_C + _MARGIN < threshold_C)
        is_fine &= (bright_C <= 1) & (bright_C - _MARGIN > threshold_C)
        if not is_fine.all():
            raise ValueError(
                f"levels {self.decoder.levels.tolist()} must lie within [-1, 1] and on both sides "
                f"of the threshold {threshold_C.tolist()}, {_MARGIN:.4f} away from it at least"
            )


class PatchEncoder(nn.Module):
    """Pixels → (cell mean - threshold), the cells of a code stacked as its channels."""

    threshold: Tensor

    def __init__(self, config: PatchThresholdConfig) -> None:
        super().__init__()
        self.config = config
        # Between levels 7 and 8 of the 16 that scikit-learn's digits have, as [-1, 1].
        threshold = torch.full((config.channels,), 2 * 7.5 / 16 - 1)
        self.register_buffer("threshold", threshold)

    def cells(self, pixels_B3HW: Tensor) -> Tensor:
        """Mean of every cell: [B, channels, H/cell, W/cell]."""
        if self.config.channels == 1:
            pixels_B3HW = pixels_B3HW.mean(dim=1, keepdim=True)
        return F.avg_pool2d(pixels_B3HW, self.config.cell)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Latents [B, K, h, w]; K runs over channel, then row, then column within the code."""
        centred_BCHW = self.cells(pixels_B3HW) - self.threshold[:, None, None]
        return F.pixel_unshuffle(centred_BCHW, self.config.cells)


class PatchDecoder(nn.Module):
    """Signs → flat cells of two levels."""

    levels: Tensor

    def __init__(self, config: PatchThresholdConfig) -> None:
        super().__init__()
        self.config = config
        levels = torch.tensor([[-1.0], [1.0]]).expand(2, config.channels).contiguous()
        self.register_buffer("levels", levels)

    def forward(self, signs_BKhw: Tensor) -> Tensor:
        """Pixels [B, 3, H, W]; one channel is repeated to grey."""
        is_bright_BCHW = F.pixel_shuffle(signs_BKhw, self.config.cells) > 0
        dark, bright = self.levels[:, None, :, None, None]
        cells_BCHW = torch.where(is_bright_BCHW, bright, dark)
        cells_B3HW = cells_BCHW.expand(-1, 3, -1, -1)
        return F.interpolate(cells_B3HW, scale_factor=float(self.config.cell), mode="nearest")


def _by_channel(cells_BCHW: Tensor, mask_BCHW: Tensor) -> list[Tensor]:
    return [cells_BCHW[:, c][mask_BCHW[:, c]] for c in range(cells_BCHW.shape[1])]
