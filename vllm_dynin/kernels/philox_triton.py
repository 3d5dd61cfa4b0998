"""`philox_uniform` as a Triton kernel; philox.py has the contract and the definition."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_GROUPS = 256


# What changes from step to step must not be compiled in: a 1 would be, and a multiple of 16.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["seed_low", "seed_high", "step", "place"]
)
def philox_kernel(  # type: ignore[no-untyped-def]
    out_ptr,
    slots_ptr,
    num_columns,
    num_groups,
    seed_low,
    seed_high,
    step,
    place,
    BLOCK: tl.constexpr,
):
    """One program: four columns of each of BLOCK groups of one row."""
    row = tl.program_id(0)
    group = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    # Words as 64-bit numbers below 2**32: their products are whole. (`tl.philox` would be shorter,
    # but Triton's own functions are not interpreted where it was imported before TRITON_INTERPRET
    # was set.)
    c0 = group.to(tl.uint64)
    zero = c0 * 0
    c1 = zero + tl.load(slots_ptr + row).to(tl.uint64)
    c2 = zero + step.to(tl.uint64)
    c3 = zero + place.to(tl.uint64)
    k0 = zero + seed_low.to(tl.uint64)
    k1 = zero + seed_high.to(tl.uint64)
    for _ in tl.static_range(10):
        p0 = c0 * 0xD2511F53
        p1 = c2 * 0xCD9E8D57
        c0 = (p1 >> 32) ^ c1 ^ k0
        c1 = p1 & 0xFFFFFFFF
        c2 = (p0 >> 32) ^ c3 ^ k1
        c3 = p0 & 0xFFFFFFFF
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    words = (c0, c1, c2, c3)
    base = out_ptr + row.to(tl.int64) * num_columns
    for word in tl.static_range(4):
        column = group * 4 + word
        value = (words[word].to(tl.float64) + 0.5) * 2.3283064365386962890625e-10
        is_inside = (group < num_groups) & (column < num_columns)
        tl.store(base + column, value.to(out_ptr.dtype.element_ty), mask=is_inside)


def philox_uniform_triton(
    slots_R: Tensor,
    num_columns: int,
    *,
    key: tuple[int, int],
    step: int,
    place: int,
    dtype: torch.dtype,
) -> Tensor:
    """See `philox_uniform`; the key is given as its two 32-bit halves, low first."""
    num_rows, num_groups = slots_R.shape[0], -(-num_columns // 4)
    out_RK = torch.empty(num_rows, num_columns, dtype=dtype, device=slots_R.device)
    if num_rows:
        grid = (num_rows, triton.cdiv(num_groups, BLOCK_GROUPS))
        philox_kernel[grid](
            out_RK, slots_R, num_columns, num_groups, *key, step, place, BLOCK=BLOCK_GROUPS
        )
    return out_RK
