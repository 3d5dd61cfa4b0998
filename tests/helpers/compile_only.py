"""Triton kernels compiled for GPUs that are not there: a launch ends as a cubin and is not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

_HARNESS = """
import json, sys, warnings
warnings.simplefilter("ignore")
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class Driver:
    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0

    def get_active_torch_device(self):
        import torch

        return torch.device("cpu")

    def set_current_device(self, device):
        pass

    @staticmethod
    def is_active():
        return True


sizes, run = {}, JITFunction.run


def compile_only(self, *args, grid, warmup, **options):
    kernel = run(self, *args, grid=grid, warmup=True, **options)
    sizes[driver.active.capability].append(len(kernel.asm["cubin"]))
    return kernel


JITFunction.run = compile_only
for capability in json.loads(sys.argv[1]):
    sizes[capability] = []
    driver.set_active(Driver(capability))
    launch()
print(json.dumps(sizes))
"""


def compile_only(script: str, capabilities: list[int]) -> dict[int, list[int]]:
    """Run a script's `launch()` in a process of its own, without Triton's interpreter.

    Args:
        script: defines `launch()`, which launches kernels on CPU tensors; values computed after a
            launch are garbage.
        capabilities: compute capabilities, 90 for sm_90.

    Returns:
        For each capability the bytes of the cubin of every launch.
    """
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script + _HARNESS, json.dumps(capabilities)],
        env=variables | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {int(key): value for key, value in json.loads(done.stdout).items()}
