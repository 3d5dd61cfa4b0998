"""Uniform draws by counter: Philox4x32-10, the same numbers on every device.

A draw is a function of where it is used, not of how many came before it: key = the 64-bit seed,
counter = (column // 4, slot, step, place), and word `column % 4` of the result. So neither tiling,
nor the number of ranks, nor the kind of GPU changes a draw.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the generator of
`tl.philox`, cuRAND and `torch.cuda`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROUNDS = 10
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
_CHUNK = 1 << 15
"""Counters of the CPU version worked on together: their eight arrays stay in the L2 cache."""


def philox_uniform(
    slots_R: Tensor,
    num_columns: int,
    *,
    seed: int,
    step: int,
    place: int,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Draws between 0 and 1, `(word + 0.5) / 2**32`.

    Args:
        slots_R: integers [R] in 0 .. 2**32 - 1; its device is where the draws are made.
        num_columns: K, at least 1.
        seed: any integer; its lowest 64 bits are the key.
        step: in 0 .. 2**32 - 1.
        place: in 0 .. 2**32 - 1.
        dtype: float64, where the value is exact and inside (0, 1), or float32, rounded to nearest
            (so 1.0 comes up about once in 2**25).

    Returns:
        [R, K] of that dtype.
    """
    assert dtype in (torch.float32, torch.float64), dtype
    assert 0 <= step <= _LOW and 0 <= place <= _LOW, (step, place)
    if slots_R.is_cuda:
        from vllm_dynin.kernels.philox_triton import philox_uniform_triton

        return philox_uniform_triton(
            slots_R, num_columns, key=_key(seed), step=step, place=place, dtype=dtype
        )
    if slots_R.device.type == "cpu":
        return _philox_uniform_numpy(
            slots_R, num_columns, key=_key(seed), step=step, place=place, dtype=dtype
        )
    return philox_uniform_ref(slots_R, num_columns, seed=seed, step=step, place=place, dtype=dtype)


def philox_uniform_ref(
    slots_R: Tensor,
    num_columns: int,
    *,
    seed: int,
    step: int,
    place: int,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The definition of `philox_uniform` in plain PyTorch, on any device."""
    groups_G = torch.arange(-(-num_columns // 4), device=slots_R.device)
    c0, c1 = torch.broadcast_tensors(groups_G, slots_R.to(torch.int64)[:, None])
    words = philox(c0, c1, torch.full_like(c0, step), torch.full_like(c0, place), *_key(seed))
    words_RK = torch.stack(words, dim=-1).flatten(1)[:, :num_columns]
    return ((words_RK.double() + 0.5) * 2.0**-32).to(dtype)


def philox_uniform_rows(
    slots_R: Tensor,
    first_column: int,
    num_columns: int,
    *,
    seeds_R: Tensor,
    steps_R: Tensor,
    places_R: Tensor,
) -> Tensor:
    """As `philox_uniform_ref`, with a key of its own for each row; without a device sync.

    Args:
        slots_R: int64.
        first_column: of the columns that are wanted.
        num_columns: K, at least 1.
        seeds_R: int64, the bits of the seeds.
        steps_R: int64 in 0 .. 2**32 - 1.
        places_R: int64 in 0 .. 2**32 - 1.

    Returns:
        float64 [R, K], exact and inside (0, 1).
    """
    first, stop = first_column // 4, -(-(first_column + num_columns) // 4)
    groups_1G = torch.arange(first, stop, device=slots_R.device)[None]
    draws_RK = philox_uniform_groups(
        slots_R, groups_1G, seeds_R=seeds_R, steps_R=steps_R, places_R=places_R
    )
    offset = first_column - 4 * first
    return draws_RK[:, offset : offset + num_columns]


def philox_uniform_groups(
    slots_R: Tensor, groups_RG: Tensor, *, seeds_R: Tensor, steps_R: Tensor, places_R: Tensor
) -> Tensor:
    """Draws of chosen groups of four columns: float64 [R, 4 G]; else as `philox_uniform_rows`."""
    c0, c1, c2, c3 = torch.broadcast_tensors(
        groups_RG, slots_R[:, None], steps_R[:, None], places_R[:, None]
    )
    words = philox(c0, c1, c2, c3, seeds_R[:, None] & _LOW, seeds_R[:, None] >> 32 & _LOW)
    words_RK = torch.stack(words, dim=-1).flatten(1)
    return (words_RK.double() + 0.5) * 2.0**-32


def philox(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: int | Tensor, k1: int | Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words of each counter.

    Args:
        c0: int64 in 0 .. 2**32 - 1, as all that follow: the lowest words of the counters.
        c1: the second words, of the same shape.
        c2: the third.
        c3: the highest.
        k0: lower half of the key, or of each counter's key.
        k1: upper half.

    Returns:
        The words, as the counters.
    """
    for _ in range(ROUNDS):
        # Products wrap around in int64; the mask takes the sign off the upper half again.
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1 = (p1 >> 32 & _LOW) ^ c1 ^ k0, p1 & _LOW
        c2, c3 = (p0 >> 32 & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


def _key(seed: int) -> tuple[int, int]:
    return seed & _LOW, seed >> 32 & _LOW


def _philox_uniform_numpy(
    slots_R: Tensor,
    num_columns: int,
    *,
    key: tuple[int, int],
    step: int,
    place: int,
    dtype: torch.dtype,
) -> Tensor:
    """For CPUs: NumPy has unsigned 64-bit products, and chunks of counters that stay in cache."""
    num_groups = -(-num_columns // 4)
    slots = slots_R.numpy().astype(np.uint64)
    out = torch.empty(len(slots), num_groups, 4, dtype=dtype)
    flat: NDArray[np.float64] = out.view(-1, 4).numpy()
    for first in range(0, len(flat), _CHUNK):
        index = np.arange(first, min(first + _CHUNK, len(flat)), dtype=np.uint64)
        row, group = np.divmod(index, np.uint64(num_groups))
        words = _philox_numpy(group, slots[row], step, place, key)
        for column, word in enumerate(words):
            flat[first : first + _CHUNK, column] = (word + 0.5) * 2.0**-32
    return out.flatten(1)[:, :num_columns]


def _philox_numpy(
    c0: NDArray[np.uint64], c1: NDArray[np.uint64], step: int, place: int, key: tuple[int, int]
) -> tuple[NDArray[np.uint64], ...]:
    low, half = np.uint64(_LOW), np.uint64(32)
    c2, c3 = np.full_like(c0, step), np.full_like(c0, place)
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * np.uint64(_M0), c2 * np.uint64(_M1)
        c0, c1 = (p1 >> half) ^ c1 ^ np.uint64(k0), p1 & low
        c2, c3 = (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3
