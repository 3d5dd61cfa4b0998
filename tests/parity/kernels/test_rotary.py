"""Rotation in place: every form to the bit what the reference backbone computes."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is imported

from helpers.kernel_forms import triton_forms

from vllm_dynin.kernels.rotary import rotate_qkv_ref
from vllm_dynin.kernels.rotary_triton import rotate_qkv_triton
from vllm_dynin.reference.backbone import rope_tables, rotate


@pytest.mark.parametrize("form", [rotate_qkv_ref, *triton_forms(rotate_qkv_triton)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("num_rows", "num_heads", "num_kv_heads", "head_dim"),
    [(1, 1, 1, 32), (7, 5, 2, 128), (33, 4, 4, 80), (3, 32, 32, 128), (0, 4, 4, 64)],
)
def test_to_the_bit(form, dtype, num_rows, num_heads, num_kv_heads, head_dim):
    generator = torch.Generator().manual_seed(num_rows)
    num_rotated = num_heads + num_kv_heads
    width = (num_rotated + num_kv_heads) * head_dim
    qkv = torch.randn(num_rows, width, generator=generator).mul(3).to(dtype)
    positions = torch.randint(0, 4096, (num_rows,), generator=generator)
    cos, sin = rope_tables(torch.arange(4096), head_dim, 500_000.0)
    half = head_dim // 2
    table = torch.cat([cos[:, :half], sin[:, :half]], dim=-1).contiguous()

    heads = qkv[:, : num_rotated * head_dim].unflatten(1, (num_rotated, head_dim))
    expected = qkv.clone()
    turned = rotate(heads, cos[positions][:, None], sin[positions][:, None])
    expected[:, : num_rotated * head_dim] = turned.flatten(1)
    form(qkv, positions, table, num_rotated, head_dim)
    assert torch.equal(qkv, expected)


def test_as_an_operation():
    """What the backbone calls: one node for a tracer, and it writes."""
    qkv, positions = torch.randn(5, 3 * 64), torch.arange(5)
    cos, sin = rope_tables(torch.arange(9), 64, 10_000.0)
    table = torch.cat([cos[:, :32], sin[:, :32]], dim=-1)
    expected = qkv.clone()
    rotate_qkv_ref(expected, positions, table, 2, 64)
    arguments = (positions, table, 2, 64)
    again = qkv.clone()
    torch.ops.vllm_dynin.rotate_qkv(qkv, *arguments)
    assert torch.equal(qkv, expected) and not torch.equal(qkv, again)
    torch.library.opcheck(
        torch.ops.vllm_dynin.rotate_qkv.default,
        (again, *arguments),
        test_utils=("test_schema", "test_faketensor"),
    )
