"""Operations of vLLM's compiled extension in plain PyTorch: right, slow, and only those we touch.

Under the extension's own names and schemas. What is not here stays undefined, so that code which
needs it fails loudly. Source of schemas and meanings: csrc/ of vLLM 0.33.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LIBRARY = torch.library.Library("_C", "FRAGMENT")


def operation(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define an operation by its schema, and what it does."""
    name = schema.split("(", 1)[0]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        LIBRARY.define(schema)
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        return function

    return decorate


# Questions about kernels for quantised weights: there are none.
for _question in (
    "cutlass_scaled_mm_supports_fp4",
    "cutlass_scaled_mm_supports_fp8",
    "cutlass_scaled_mm_supports_block_fp8",
    "cutlass_group_gemm_supported",
):
    LIBRARY.define(f"{_question}(int cuda_device_capability) -> bool")
    LIBRARY.impl(_question, lambda cuda_device_capability: False, "CompositeImplicitAutograd")


def _normed(x: Tensor, weight: Tensor | None, epsilon: float, dtype: torch.dtype) -> Tensor:
    y = (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)).to(dtype)
    return y if weight is None else y * weight


@operation("rms_norm(Tensor(a!) result, Tensor input, Tensor? weight, float epsilon) -> ()")
def rms_norm(result: Tensor, input: Tensor, weight: Tensor | None, epsilon: float) -> None:
    result.copy_(_normed(input.float(), weight, epsilon, input.dtype))


@operation(
    "fused_add_rms_norm(Tensor(a!) input, Tensor(b!) residual, Tensor? weight, float epsilon) -> ()"
)
def fused_add_rms_norm(
    input: Tensor, residual: Tensor, weight: Tensor | None, epsilon: float
) -> None:
    total = input.float() + residual.float()
    residual.copy_(total.to(residual.dtype))
    input.copy_(_normed(total, weight, epsilon, input.dtype))


@operation(
    "rotary_embedding(Tensor positions, Tensor(a!) query, Tensor(b!)? key, int head_size, "
    "Tensor cos_sin_cache, bool is_neox, int rope_dim_offset=0, bool inverse=False) -> ()"
)
def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
    rope_dim_offset: int = 0,
    inverse: bool = False,
) -> None:
    rows = positions.flatten()
    cos, sin = cos_sin_cache.index_select(0, rows).float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), (-sin if inverse else sin).unsqueeze(1)
    width = cos.shape[-1] * 2
    for tensor in (query, key):
        if tensor is None:
            continue
        view = tensor.view(rows.numel(), -1, head_size)
        part = view[..., rope_dim_offset : rope_dim_offset + width]
        p = part.float()
        if is_neox:
            a, b = p.chunk(2, dim=-1)
            out = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        else:
            a, b = p[..., ::2], p[..., 1::2]
            out = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
        part.copy_(out.to(tensor.dtype))


@operation("silu_and_mul(Tensor(a!) out, Tensor input) -> ()")
def silu_and_mul(out: Tensor, input: Tensor) -> None:
    gate, up = input.chunk(2, dim=-1)
    out.copy_(F.silu(gate) * up)


# --- the CPU platform's own -----------------------------------------------------------------------


@operation("init_cpu_memory_env(int[] nodes) -> ()")
def init_cpu_memory_env(nodes: list[int]) -> None:
    pass


@operation("init_cpu_threads_env(str ids) -> str")
def init_cpu_threads_env(ids: str) -> str:
    return ""


@operation(
    "get_scheduler_metadata(int num_req, int nh, int nkv, int hd, Tensor seq_lens, "
    "ScalarType dtype, Tensor qsl, bool causal, int window, str isa, bool split, Tensor? dyn, "
    "str kvd) -> Tensor"
)
def get_scheduler_metadata(*arguments: Any) -> Tensor:
    return torch.zeros(1, dtype=torch.int32)


@operation(
    "cpu_attn_reshape_and_cache(Tensor key, Tensor value, Tensor(a!) kc, Tensor(b!) vc, "
    "Tensor slot_mapping, str isa, float ks, float vs, str kvd) -> ()"
)
def cpu_attn_reshape_and_cache(
    key: Tensor,
    value: Tensor,
    kc: Tensor,  # [blocks, KV heads, block size, head size]
    vc: Tensor,
    slot_mapping: Tensor,
    isa: str,
    ks: float,
    vs: float,
    kvd: str,
) -> None:
    size, rows = kc.shape[2], slot_mapping.numel()
    used = slot_mapping >= 0
    slots = slot_mapping[used]
    # A GPU would write past the cache without a word.
    assert not slots.numel() or int(slots.max()) < kc.shape[0] * size, "a slot beyond the KV cache"
    kc[slots // size, :, slots % size] = key[:rows][used]
    vc[slots // size, :, slots % size] = value[:rows][used]


@operation(
    "cpu_attention_with_kv_cache(Tensor query, Tensor kc, Tensor vc, Tensor(a!) output, "
    "Tensor qsl, Tensor seq_lens, float scale, bool causal, Tensor? alibi, int window, "
    "Tensor block_table, float softcap, Tensor sm, Tensor? aux, Tensor? dyn, float ks, float vs, "
    "str kvd) -> ()"
)
def cpu_attention_with_kv_cache(
    query: Tensor,
    kc: Tensor,
    vc: Tensor,
    output: Tensor,
    qsl: Tensor,
    seq_lens: Tensor,
    scale: float,
    causal: bool,
    alibi: Tensor | None,
    window: int,
    block_table: Tensor,
    *unused: Any,
) -> None:
    starts, size = qsl.tolist(), kc.shape[2]
    for row, length in enumerate(seq_lens.tolist()):
        first, stop = starts[row], starts[row + 1]
        if stop <= first or length == 0:
            continue
        blocks = block_table[row, : -(-length // size)].long()
        assert not blocks.numel() or int(blocks.max()) < len(kc), "a block beyond the KV cache"
        key, value = (
            cache[blocks].transpose(1, 2).flatten(0, 1)[:length].transpose(0, 1).float()
            for cache in (kc, vc)
        )
        mask = None
        if causal:
            mask = torch.ones(stop - first, length, dtype=torch.bool)
            mask = mask.tril(length - (stop - first))
        out = F.scaled_dot_product_attention(
            query[first:stop].transpose(0, 1)[None].float(),
            key[None],
            value[None],
            attn_mask=mask,
            scale=scale,
            enable_gqa=True,
        )
        output[first:stop] = out[0].transpose(0, 1).to(output.dtype)
