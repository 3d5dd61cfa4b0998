"""Which form of a kernel runs: by the device, or as DYNIN_KERNELS says."""

from __future__ import annotations

from enum import Enum

import torch

from vllm_dynin import envs


class Implementation(Enum):
    """Forms of a kernel. Not every kernel has all of them."""

    TORCH = "torch"
    """The definition, in plain PyTorch."""
    NUMBA = "numba"
    """Compiled loops, on a CPU."""
    TRITON = "triton"
    """On a GPU; on a CPU in Triton's interpreter."""
    CUDA = "cuda"
    """CUDA C++, where it was built."""


def chosen(device: torch.device) -> Implementation:
    """The form that runs on a device.

    Raises:
        ValueError: DYNIN_KERNELS names one that does not run there.
    """
    asked = envs.kernels()
    if asked == "torch":
        return Implementation.TORCH
    if device.type == "cuda":
        return Implementation.CUDA if asked == "cuda" else Implementation.TRITON
    if asked == "triton" and envs.interprets_triton():
        return Implementation.TRITON
    if asked is not None:
        raise ValueError(
            f"{envs.KERNELS}={asked} needs a CUDA device, and this step is on {device.type}; "
            "leave it unset or set it to torch"
        )
    return Implementation.NUMBA if device.type == "cpu" else Implementation.TORCH
