"""The guidance formula and its two roundings."""

import pytest
import torch

from vllm_dynin.canvas import GuidanceForm
from vllm_dynin.sampling.guidance import guide

# 12.4 and 11.8 rounded to bfloat16; the exact value at s = 3.5 is 14.34375.
CONDITIONAL = torch.tensor([12.4]).bfloat16()
UNCONDITIONAL = torch.tensor([11.8]).bfloat16()


def test_bfloat16_tells_the_forms_apart():
    assert (CONDITIONAL.item(), UNCONDITIONAL.item()) == (12.375, 11.8125)
    weighted = guide(CONDITIONAL, UNCONDITIONAL, 3.5, GuidanceForm.WEIGHTED)
    delta = guide(CONDITIONAL, UNCONDITIONAL, 3.5, GuidanceForm.DELTA)
    assert weighted.dtype == delta.dtype == torch.bfloat16
    assert weighted.item() == 14.5
    assert delta.item() == 14.375
    exact = guide(CONDITIONAL.double(), UNCONDITIONAL.double(), 3.5, GuidanceForm.WEIGHTED)
    assert exact.item() == 14.34375


@pytest.mark.parametrize("form", list(GuidanceForm))
def test_scale_zero_is_off(form):
    generator = torch.Generator().manual_seed(0)
    conditional, unconditional = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    guided = guide(conditional, unconditional, 0.0, form)
    assert torch.allclose(guided, conditional, atol=1e-15, rtol=0)


@pytest.mark.parametrize("form", list(GuidanceForm))
def test_value_and_purity(form):
    conditional = torch.tensor([2.0, -1.0], dtype=torch.float64)
    unconditional = torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert guide(conditional, unconditional, 1.5, form).tolist() == [3.5, -4.0]
    assert conditional.tolist() == [2.0, -1.0] and unconditional.tolist() == [1.0, 1.0]
