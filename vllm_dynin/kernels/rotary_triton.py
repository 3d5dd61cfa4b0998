"""`rotate_qkv` as a Triton kernel; rotary.py has the contract and the definition."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vllm_dynin.kernels.rounding_device import rounded

ELEMENTS = 2048
"""Pairs that one program rotates."""


@triton.jit  # type: ignore[untyped-decorator]
def rotary_kernel(  # type: ignore[no-untyped-def]
    qkv_ptr,
    positions_ptr,
    table_ptr,
    row_stride,
    num_heads,
    half,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """One program: HEADS heads of one row."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, HALF)[None, :]
    is_pair = pair < half
    angle = table_ptr + tl.load(positions_ptr + row) * (2 * half) + pair
    cos = tl.load(angle, mask=is_pair, other=0.0)
    sin = tl.load(angle + half, mask=is_pair, other=0.0)
    at = qkv_ptr + row * row_stride + head * (2 * half) + pair
    is_inside = is_pair & (head < num_heads)
    first = tl.load(at, mask=is_inside, other=0.0)
    second = tl.load(at + half, mask=is_inside, other=0.0)
    dtype = first.dtype
    first = first.to(tl.float32)
    second = second.to(tl.float32)
    tl.store(at, rounded(first * cos - second * sin, dtype).to(dtype), mask=is_inside)
    tl.store(at + half, rounded(second * cos + first * sin, dtype).to(dtype), mask=is_inside)


def rotate_qkv_triton(
    qkv_TE: Tensor, positions_T: Tensor, table_PH: Tensor, num_heads: int, head_dim: int
) -> None:
    """See `rotate_qkv`."""
    assert qkv_TE.stride(1) == 1 and table_PH.is_contiguous()
    half = head_dim // 2
    columns = triton.next_power_of_2(half)
    heads = max(1, min(triton.next_power_of_2(num_heads), ELEMENTS // columns))
    if not len(qkv_TE):
        return
    rotary_kernel[(len(qkv_TE), triton.cdiv(num_heads, heads))](
        qkv_TE,
        positions_T,
        table_PH,
        qkv_TE.stride(0),
        num_heads,
        half,
        HEADS=heads,
        HALF=columns,
        enable_fp_fusion=False,  # products are rounded before they are added, as in PyTorch
    )
