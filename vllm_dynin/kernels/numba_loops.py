"""How loops are compiled by Numba. Imported when they are first needed: it takes a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(*fast: str) -> Callable[[Any], Any]:
    """Decorator: compile a function, without the interpreter lock, and keep it on disk.

    The copy, in __pycache__ or Numba's cache folder, saves seconds at the next start.

    Args:
        fast: what LLVM may do with floating-point numbers; nothing by default.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(fast)}

    def decorate(function: Any) -> Any:
        try:
            return numba.njit(**options, cache=True)(function)
        except RuntimeError:  # no folder to write to
            return numba.njit(**options)(function)

    return decorate
