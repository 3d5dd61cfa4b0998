"""Philox4x32-10 inside Triton kernels; philox.py has the definition."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def words(c0, seed, slot, step, place):  # type: ignore[no-untyped-def]
    """Philox4x32-10 of uint64 counters below 2**32; the products of such words are whole."""
    # `tl.philox` would be shorter, but Triton's own functions are not interpreted where it was
    # imported before TRITON_INTERPRET was set.
    zero = c0 * 0
    c1 = zero + (slot & 0xFFFFFFFF).to(tl.uint64)
    c2 = zero + (step & 0xFFFFFFFF).to(tl.uint64)
    c3 = zero + (place & 0xFFFFFFFF).to(tl.uint64)
    k0 = zero + (seed & 0xFFFFFFFF).to(tl.uint64)
    k1 = zero + ((seed >> 32) & 0xFFFFFFFF).to(tl.uint64)
    for _ in tl.static_range(10):
        p0 = c0 * 0xD2511F53
        p1 = c2 * 0xCD9E8D57
        c0 = (p1 >> 32) ^ c1 ^ k0
        c1 = p1 & 0xFFFFFFFF
        c2 = (p0 >> 32) ^ c3 ^ k1
        c3 = p0 & 0xFFFFFFFF
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


@triton.jit
def tile(first, group, seed, slot, step, place):  # type: ignore[no-untyped-def]
    """The words of groups of four columns, int64 [G, 4]; `first` is a multiple of four."""
    c0, c1, c2, c3 = words((first // 4 + group).to(tl.uint64), seed, slot, step, place)
    word = tl.arange(0, 4)[None, :]
    low = tl.where(word == 0, c0[:, None], c1[:, None])
    high = tl.where(word == 2, c2[:, None], c3[:, None])
    return tl.where(word < 2, low, high).to(tl.int64)


@triton.jit
def draw(column, seed, slot, step, place):  # type: ignore[no-untyped-def]
    """The word of single columns, int64."""
    c0, c1, c2, c3 = words((column >> 2).to(tl.uint64), seed, slot, step, place)
    word = column & 3
    found = tl.where(word == 0, c0, tl.where(word == 1, c1, tl.where(word == 2, c2, c3)))
    return found.to(tl.int64)
