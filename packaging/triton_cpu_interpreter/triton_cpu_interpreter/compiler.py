"""The compiler half: it supports the target `cpu` by name and refuses to compile for it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from triton.backends.compiler import BaseBackend, GPUTarget

from . import REASON, installed_class


class CPUInterpreterBackend(BaseBackend):
    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return target.backend == "cpu"

    def hash(self) -> str:
        return "cpu-interpreter"

    def parse_options(self, options: dict[str, Any]) -> object:
        raise NotImplementedError(REASON)

    def add_stages(self, stages: dict[str, Any], options: object, language: object) -> None:
        raise NotImplementedError(REASON)

    def load_dialects(self, context: object) -> None:
        raise NotImplementedError(REASON)

    def get_module_map(self) -> dict[str, ModuleType]:
        return {}


_installed = installed_class("compiler", BaseBackend)
if _installed is not None:
    globals()["CPUInterpreterBackend"] = _installed
# Triton insists on exactly one class here, and counts names.
del _installed
