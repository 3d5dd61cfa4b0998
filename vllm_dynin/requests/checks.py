"""Fields of requests, checked when a request is made: their types, and what holds for all of them.

Media are checked when they are opened, and what depends on the checkpoint when a prompt is made.
"""

from __future__ import annotations

import math
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from vllm_dynin.sampling.params import DenoiseParams

_WORDS: dict[Any, str] = {
    str: "a string",
    bool: "True or False",
    int: "an integer",
    float: "a finite number",
    DenoiseParams: "DenoiseParams(…)",
    type(None): "None",
}


def check_fields(request: Any) -> None:
    """Check the fields of a request whose types are plain.

    Raises:
        ValueError: one is of another type.
    """
    for name, kinds in _plain_fields(request.__class__).items():
        value = getattr(request, name)
        if not any(_is(value, kind) for kind in kinds):
            raise ValueError(
                wrong(type(request), name, value, " or ".join(_WORDS[kind] for kind in kinds))
            )


def wrong(owner: type, name: str, value: Any, rule: str) -> str:
    """The sentence about a field of another type."""
    return f"{owner.__name__}: {name}={repr(value)[:60]} must be {rule}"


def _is(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):  # which Python takes for an integer
        return kind is bool
    if kind not in (int, float):
        return isinstance(value, kind)
    if kind is int:
        return isinstance(value, Integral)
    return isinstance(value, Real) and math.isfinite(value)


@cache
def _plain_fields(owner: type) -> dict[str, tuple[Any, ...]]:
    """Fields whose types are all in `_WORDS`, and those types."""
    hints = get_type_hints(owner)
    found = {}
    for field in fields(owner):
        hint = hints[field.name]
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if all(kind in _WORDS for kind in kinds):
            found[field.name] = kinds
    return found
