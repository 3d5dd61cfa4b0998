"""Lookup-free quantisation: a code is the signs of a latent vector, read as a binary number.

Channel 0 is the most significant bit. There is no table to learn or to search.

Source: MAGVIT-v2 as in Dynin-Omni `models/modeling_magvitv2.py` (d6e3ca8).
Shape legend: B batch, K bits, h × w the latent grid, N = h·w in raster order.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bit_weights(num_bits: int, device: torch.device | None = None) -> Tensor:
    """int64 [K]: what each channel adds to a code when it is positive, 2^(K-1) down to 1."""
    return 1 << torch.arange(num_bits - 1, -1, -1, device=device)


def codes_from_latents(latents_BKhw: Tensor) -> Tensor:
    """Quantise latents.

    A bit is 1 where the latent is strictly positive; zero and NaN give 0. The original tests the
    straight-through sum h + (sign h - h), which is the same in fp32 for |h| < 2^24 and loses bits
    in half precision; the sign is tested directly here.

    Args:
        latents_BKhw: any float dtype; not modified.

    Returns:
        int64 [B, h·w], each in 0 .. 2^K - 1, raster order.
    """
    weights_K = bit_weights(latents_BKhw.shape[1], latents_BKhw.device)
    codes_Bhw = ((latents_BKhw > 0) * weights_K[:, None, None]).sum(dim=1)
    return codes_Bhw.flatten(1)


def signs_from_codes(codes_BN: Tensor, num_bits: int, height: int, width: int) -> Tensor:
    """The latents codes stand for: ±1 at each bit.

    Args:
        codes_BN: int64 [B, height·width] in 0 .. 2^num_bits - 1 (not checked here).
        num_bits: K.
        height: rows of the latent grid.
        width: columns of the latent grid.

    Returns:
        float32 [B, K, height, width].
    """
    weights_K = bit_weights(num_bits, codes_BN.device)
    is_set_BKhw = (codes_BN.view(-1, 1, height, width) & weights_K[:, None, None]) != 0
    return is_set_BKhw.to(torch.float32) * 2 - 1


def codebook(num_bits: int) -> Tensor:
    """float32 [2^K, K]: row i holds the signs of code i. Checkpoints carry it; we compute it."""
    codes = torch.arange(1 << num_bits)
    return signs_from_codes(codes[:, None], num_bits, 1, 1).flatten(1)
