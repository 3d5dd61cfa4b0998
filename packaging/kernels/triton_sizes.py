"""Compile the Triton kernels for GPUs that are not there; print what `ptxas -v` says of each.

python packaging/kernels/triton_sizes.py [80 90 100]     one JSON object a line

A launch on CPU tensors ends as a cubin and is not run. Values computed after it are garbage.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ["CUDA_VISIBLE_DEVICES"] = ""
warnings.simplefilter("ignore")

import torch  # noqa: E402
from launches import LAUNCHES  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.nvidia.compiler import get_ptxas  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402


class FakeDriver:
    """A GPU as far as the compiler asks about it."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def set_current_device(self, device: int) -> None:
        pass

    @staticmethod
    def is_active() -> bool:
        return True


def assembled(kernel: Any) -> dict[str, int]:
    """Registers, spilled bytes and size of a kernel, by assembling its PTX once more."""
    target = re.search(r"\.target (\w+)", kernel.asm["ptx"])
    assert target is not None
    ptxas = get_ptxas(int(re.sub(r"\D", "", target[1]))).path
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(kernel.asm["ptx"])
        file.flush()
        done = subprocess.run(
            [ptxas, "-v", f"--gpu-name={target[1]}", file.name, "-o", f"{file.name}.cubin"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert not done.returncode, done.stderr + done.stdout
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spilled = re.search(r"(\d+) bytes spill stores", done.stderr)
    assert registers is not None and spilled is not None, done.stderr
    return {
        "registers": int(registers[1]),
        "spilled": int(spilled[1]),
        "shared": kernel.metadata.shared,
        "cubin": len(kernel.asm["cubin"]),
    }


def main() -> None:
    """Compile every launch for every capability that is asked for."""
    found: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found.append((self.fn.__name__, kernel))
        return kernel

    JITFunction.run = compile_only
    for capability in [int(value) for value in sys.argv[1:]] or [80, 90, 100]:
        driver.set_active(FakeDriver(capability))
        for case, launch in LAUNCHES.items():
            found.clear()
            launch()
            for name, kernel in found:
                sizes = assembled(kernel)
                print(json.dumps({"sm": capability, "kernel": name, "case": case} | sizes))


if __name__ == "__main__":
    main()
