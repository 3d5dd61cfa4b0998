"""The same test body on a CPU and on a GPU: what is promised of a GPU, and kept from rotting here.

    @pytest.mark.parametrize("device", DEVICES)
    def test_it(device): … on_device(device) …

The second parameter has the marker `gpu`, and is skipped with its reason where there is none.
"""

from __future__ import annotations

import pytest
import torch

from vllm_dynin.processors.codecs.precision import full_float32

DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [pytest.param(torch.float32, id="fp32"), pytest.param(torch.bfloat16, id="bf16")]

__all__ = ["DEVICES", "DTYPES", "full_float32", "on_device"]


def on_device(name: str) -> torch.device:
    """The device of a parameter of `DEVICES`; skips the test where it is missing."""
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(name)
