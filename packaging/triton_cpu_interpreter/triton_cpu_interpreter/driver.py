"""The driver half: never active, so Triton never chooses it over a device's own driver."""

from __future__ import annotations

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from . import REASON, installed_class


class CPUInterpreterDriver(DriverBase):
    @classmethod
    def is_active(cls) -> bool:
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError(REASON)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError(REASON)


_installed = installed_class("driver", DriverBase)
if _installed is not None:
    globals()["CPUInterpreterDriver"] = _installed
# Triton insists on exactly one class here, and counts names.
del _installed
