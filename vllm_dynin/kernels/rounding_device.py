"""Rounding to a narrower dtype inside Triton kernels, the same compiled and interpreted."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def rounded(x, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """A float32 number rounded to a dtype, as float32 again."""
    if dtype == tl.bfloat16:
        # By its bits: Triton's interpreter rounds halves up.
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    elif dtype == tl.float16:
        x = x.to(tl.float16).to(tl.float32)
    return x
