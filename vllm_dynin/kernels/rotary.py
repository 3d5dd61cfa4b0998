"""Kernel C: queries and keys rotated in place, in float32 inside and in their dtype outside.

Shape suffixes: T rows, E = heads of queries, keys and values side by side, P positions, H size of a
head.

It is an operation of PyTorch's (`torch.ops.vllm_dynin.rotate_qkv`), so that compilation sees one
node that writes its argument.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library

from vllm_dynin.kernels.choice import Implementation, chosen

_library = Library("vllm_dynin", "FRAGMENT")
_library.define(
    "rotate_qkv(Tensor(a!) qkv, Tensor positions, Tensor table, int num_heads, int head_dim) -> ()"
)


def rotate_qkv(
    qkv_TE: Tensor, positions_T: Tensor, table_PH: Tensor, num_heads: int, head_dim: int
) -> None:
    """Rotate the first heads of every row, in place.

    Args:
        qkv_TE: bfloat16, float16 or float32; heads of queries, then of keys, then of values.
        positions_T: int64, row of the table of each row.
        table_PH: float32, cosines of the H / 2 angles, then their sines.
        num_heads: heads of queries and keys together: those that are rotated.
        head_dim: H, even.

    Source: `rope_full_precision` of LLaDA / Dynin-Omni, and half-split layout.
    """
    if chosen(qkv_TE.device) in (Implementation.TRITON, Implementation.CUDA):
        from vllm_dynin.kernels.rotary_triton import rotate_qkv_triton

        rotate_qkv_triton(qkv_TE, positions_T, table_PH, num_heads, head_dim)
    else:
        rotate_qkv_ref(qkv_TE, positions_T, table_PH, num_heads, head_dim)


def rotate_qkv_ref(
    qkv_TE: Tensor, positions_T: Tensor, table_PH: Tensor, num_heads: int, head_dim: int
) -> None:
    """The definition of `rotate_qkv` in plain PyTorch, on any device."""
    heads = qkv_TE[:, : num_heads * head_dim].unflatten(1, (num_heads, head_dim))
    cos, sin = table_PH[positions_T][:, None].chunk(2, dim=-1)
    first, second = heads.float().chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    heads.copy_(rotated)


def _shapes_alone(
    qkv_TE: Tensor, positions_T: Tensor, table_PH: Tensor, num_heads: int, head_dim: int
) -> None:
    """Nothing is returned, so there is nothing to say to a tracer."""


for _key in ("CPU", "CUDA"):
    _library.impl("rotate_qkv", rotate_qkv, _key)
torch.library.register_fake("vllm_dynin::rotate_qkv", _shapes_alone, lib=_library)
