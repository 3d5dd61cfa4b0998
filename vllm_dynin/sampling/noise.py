"""Random draws that depend on one request alone.

Each denoising step of each request has its own generator, keyed by the request's seed and by where
the request stands. So neither the neighbours in the batch, nor the order of arrival, nor a restart
after preemption changes a draw.
"""

from __future__ import annotations

import torch

_MASK64 = (1 << 64) - 1


def mix_key(*values: int) -> int:
    """Mix integers into one well-spread 63-bit key (splitmix64 over the values in order)."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = (state + (value & _MASK64) + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state >> 1


def step_generator(
    device: torch.device, seed: int, block: int, step: int, part: int = 0
) -> torch.Generator:
    """Generator of one denoising step, owned by the caller.

    Args:
        device: where the draws are made; CPU and CUDA give different numbers for one key.
        seed: the request's seed.
        block: index of the block (or region) within the canvas.
        step: denoising step within the block.
        part: which tile of rows, where a step's rows are processed in tiles.
    """
    generator = torch.Generator(device=device)
    generator.manual_seed(mix_key(seed, block, step, part))
    return generator
