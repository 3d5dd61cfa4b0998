r"""Text that is none: JSON can spell half of a character (`"\ud800"`), which no tokenizer reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SPELLED = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
_HALF = re.compile("[\ud800-\udfff]")


def may_hold_some(body: bytes) -> bool:
    """Whether a body of JSON is to be looked at: it spells a half, alone or with the other one."""
    return _SPELLED.search(body) is not None


def check(data: Any) -> None:
    """Check that all text is of whole characters.

    Args:
        data: JSON, or the fields of a form.

    Raises:
        ValueError: a string, or the name of a field, holds half a character.
    """
    found = _find(data, "")
    if found is not None:
        place, half = found
        raise ValueError(
            f"{place or 'the body'} holds half a character (\\u{ord(half):04x}, a lone surrogate), "
            "which is no text; send whole characters in UTF-8, or both halves of the pair"
        )


def _find(data: Any, place: str) -> tuple[str, str] | None:
    if isinstance(data, str):
        half = _HALF.search(data)
        return None if half is None else (place, half[0])
    if isinstance(data, Mapping):
        for name, value in data.items():
            if isinstance(name, str) and (half := _HALF.search(name)):
                return "the name of a field", half[0]
            if found := _find(value, f"{place}.{name}".lstrip(".")):
                return found
    elif isinstance(data, list | tuple):
        for index, value in enumerate(data):
            if found := _find(value, f"{place}.{index}".lstrip(".")):
                return found
    return None
