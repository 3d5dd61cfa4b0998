"""Logits in a wider tile: the same numbers, and rows that begin at whole vectors."""

import pytest
import torch
import torch.nn.functional as F

from vllm_dynin.kernels.padded_logits import padded_logits
from vllm_dynin.kernels.row_statistics import row_statistics
from vllm_dynin.kernels.rows import RowInputs, row_statistics_ref
from vllm_dynin.kernels.step_table import Proposal, new_table, set_row


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ranges", [((3, 4),), ((0, 64),), ((7, 1356),), ((2, 35), (500, 1001))])
def test_the_same_numbers(ranges, dtype):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 32, generator=generator).to(dtype)
    weight = torch.randn(1400, 32, generator=generator).to(dtype)
    found = padded_logits(hidden, weight, ranges)
    expected = torch.cat([F.linear(hidden, weight[a:b]) for a, b in ranges], dim=-1)
    assert torch.allclose(
        found.float(), expected.float(), rtol=1e-2 if dtype.itemsize == 2 else 1e-5
    )
    assert found.shape == expected.shape
    assert found.stride(0) * 2 % 128 == 0 and found.stride(1) == 1
    table = new_table(1)
    set_row(table, 0, proposal=Proposal.GUMBEL, seed=3)
    index = torch.arange(5)
    rows = RowInputs(found, table, index * 0, index)
    assert row_statistics(rows).column.tolist() == row_statistics_ref(rows).column.tolist()
