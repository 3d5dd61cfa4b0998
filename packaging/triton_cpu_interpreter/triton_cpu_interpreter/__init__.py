"""Lists a Triton backend named `cpu`; ../pyproject.toml says why, and when to remove it."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

REASON = (
    "this Triton backend compiles nothing; set TRITON_INTERPRET=1 before the kernels are imported"
)


def installed_class(part: str, base: type) -> type | None:
    """The class of another installed backend named `cpu`, or None where there is none.

    Triton keys its backends by name and the last one listed wins, so this package would hide a
    real CPU backend if it did not hand over that backend's classes.

    Args:
        part: "compiler" or "driver", the submodule in which Triton looks for the class.
        base: Triton's abstract class for that part.
    """
    for entry in entry_points(group="triton.backends", name="cpu"):
        if entry.value == __name__:
            continue
        module = importlib.import_module(f"{entry.value}.{part}")
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, base)
                and not value.__abstractmethods__
            ):
                return value
    return None
