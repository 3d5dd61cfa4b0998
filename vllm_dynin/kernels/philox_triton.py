"""`philox_uniform` as a Triton kernel; philox.py has the contract and the definition."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_dynin.kernels.philox_device import words

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
    seed = seed_low.to(tl.uint64) | (seed_high.to(tl.uint64) << 32)
    slot = tl.load(slots_ptr + row).to(tl.uint64)
    # A small number comes as int32, which has no place for the mask of 32 bits.
    drawn = words(group.to(tl.uint64), seed, slot, step.to(tl.uint64), place.to(tl.uint64))
    base = out_ptr + row.to(tl.int64) * num_columns
    for word in tl.static_range(4):
        column = group * 4 + word
        value = (drawn[word].to(tl.float64) + 0.5) * 2.3283064365386962890625e-10
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
