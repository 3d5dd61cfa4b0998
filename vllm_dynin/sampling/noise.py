"""Random draws that depend on one request alone.

A draw is a function of the request's seed and of the place it is used at: region, block, denoising
step, slot and column. So neither the neighbours in the batch, nor the order of arrival, nor a
restart after preemption, nor tiling, ranks or the kind of device changes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from vllm_dynin.kernels.philox import philox_uniform

_MASK64 = (1 << 64) - 1
_BLOCK_BITS, _REGION_BITS = 20, 8
_DIGITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}


def mix_key(*values: int) -> int:
    """Mix integers into one well-spread 63-bit key (splitmix64 over the values in order)."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = (state + (value & _MASK64) + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state >> 1


class _Use(IntEnum):
    """What a draw is for; part of its key."""

    PROPOSAL = 0
    RANKING = 1


@dataclass(frozen=True)
class StepDraws:
    """The draws of one denoising step of one request.

    Args:
        seed: the request's; any integer, its lowest 64 bits count.
        region: index of the region within the canvas, below 256.
        block: index of the block within the region, below 2**20.
        step: denoising step within the block.
    """

    seed: int
    region: int
    block: int
    step: int

    def at(self, slots_R: Tensor) -> SlotDraws:
        """Draws of some slots of the canvas (int64 [R]), made on their device."""
        return SlotDraws(self, slots_R)


@dataclass(frozen=True)
class SlotDraws:
    """The draws of one denoising step for some slots, one a row: the same at every call."""

    step: StepDraws
    slots_R: Tensor

    def uniform(self, num_columns: int) -> Tensor:
        """float64 [R, K] inside (0, 1), for the proposals."""
        return self._draw(_Use.PROPOSAL, num_columns, torch.float64)

    def exponential(self, num_columns: int, dtype: torch.dtype) -> Tensor:
        """Draws of Exp(1) for the proposals, computed in float32; at least 2**-33, may be inf."""
        uniform_RK = self._draw(_Use.PROPOSAL, num_columns, torch.float32)
        # Only small values matter to an arg-max of p / e; near 0 the logarithm keeps all digits.
        return uniform_RK.neg_().log1p_().neg_().to(dtype)

    def ranking(self, dtype: torch.dtype) -> Tensor:
        """Uniform draws [R] in [0, 1) to rank slots by, of as many bits as `torch.rand` has."""
        uniform_R = self._draw(_Use.RANKING, 1, torch.float64)[:, 0]
        if dtype in _DIGITS:
            scale = 2.0 ** _DIGITS[dtype]
            uniform_R = (uniform_R * scale).floor() / scale
        return uniform_R.to(dtype)

    def _draw(self, use: _Use, num_columns: int, dtype: torch.dtype) -> Tensor:
        of = self.step
        assert 0 <= of.block < 1 << _BLOCK_BITS and 0 <= of.region < 1 << _REGION_BITS, of
        place = ((use << _REGION_BITS | of.region) << _BLOCK_BITS) | of.block
        return philox_uniform(
            self.slots_R, num_columns, seed=of.seed, step=of.step, place=place, dtype=dtype
        )
