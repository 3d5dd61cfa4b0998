"""Nested frozen dataclasses as flat settings: print them, tell two apart, change some by name.

A setting's name is the path of its fields, `tasks.t2i.policy.dropout`: keys of mappings are path
elements too.
"""

from __future__ import annotations

import ast
import difflib
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

_Config = TypeVar("_Config")
_MISSING = object()
_WORDS = {"true": True, "false": False, "none": None, "inf": float("inf")}


def flatten(config: Any) -> dict[str, Any]:
    """Every setting by its name, in the order of the fields."""
    found: dict[str, Any] = {}
    for name, value in _children(config):
        if is_dataclass(value) or isinstance(value, Mapping):
            found |= {f"{name}.{rest}": leaf for rest, leaf in flatten(value).items()}
        else:
            found[name] = value
    return found


def _children(config: Any) -> list[tuple[str, Any]]:
    if isinstance(config, Mapping):
        return [(_text(key), value) for key, value in config.items()]
    return [(field.name, getattr(config, field.name)) for field in fields(config)]


def _text(value: Any) -> str:
    """A value as `override` reads it: words bare, everything else as Python writes it."""
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, str):
        return repr(value) if _literal(value) is not _MISSING or not value else value
    if isinstance(value, tuple):
        return repr(list(value))
    return repr(value)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return _MISSING


def render(config: Any) -> str:
    """One `name = value` a line."""
    return "\n".join(f"{name} = {_text(value)}" for name, value in flatten(config).items())


def differences(first: Any, second: Any) -> list[str]:
    """`name: value → value` for every setting in which two configurations differ.

    What only one of them has at all, a direction for instance, is one line.
    """
    ours, theirs = flatten(first), flatten(second)
    lines: list[str] = []
    for name in ours:
        if name in theirs and ours[name] != theirs[name]:
            lines.append(f"{name}: {_text(ours[name])} → {_text(theirs[name])}")
        elif name not in theirs:
            lines.append(f"{_missing_root(name, theirs)}: only in the first")
    lines += [f"{_missing_root(n, ours)}: only in the second" for n in theirs if n not in ours]
    return list(dict.fromkeys(lines))


def _missing_root(name: str, others: Mapping[str, Any]) -> str:
    """The shortest beginning of a name under which the others have no setting."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        root = ".".join(parts[:length])
        if not any(other == root or other.startswith(f"{root}.") for other in others):
            return root
    return name


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`name=value` arguments as a mapping.

    Raises:
        ValueError: an argument has no `=`, or a name comes twice.
    """
    found: dict[str, str] = {}
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if not sign or not name:
            raise ValueError(f"{argument!r} is no setting; write it as name=value")
        if name in found:
            raise ValueError(f"{name} is set twice, to {found[name]!r} and {value!r}; set it once")
        found[name] = value
    return found


def override(config: _Config, settings: Mapping[str, str]) -> _Config:
    """A copy with some settings changed; each dataclass on the way checks itself again.

    Settings of one dataclass are changed together, so that rules between them hold at the end.

    Args:
        config: a frozen dataclass.
        settings: text of each new value by name, as `render` writes it: numbers, None, true or
            false, lists, and words.

    Raises:
        ValueError: no setting has such a name, or a value has another type than the field.
    """
    known = flatten(config)
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"there is no setting {name!r}{hint}")
    changed: _Config = _override(config, {tuple(n.split(".")): v for n, v in settings.items()}, "")
    return changed


def _override(config: Any, settings: Mapping[tuple[str, ...], str], prefix: str) -> Any:
    if not settings:
        return config
    hints = {} if isinstance(config, Mapping) else typing.get_type_hints(type(config))
    new: dict[str, Any] = {}
    for name, value in _children(config):
        own = {path[1:]: text for path, text in settings.items() if path[0] == name}
        if () in own:
            new[name] = _read(prefix + name, own[()], hints[name])
        elif own:
            new[name] = _override(value, own, f"{prefix}{name}.")
    if isinstance(config, Mapping):
        return {key: new.get(_text(key), value) for key, value in config.items()}
    return replace(config, **new)


def _read(name: str, text: str, hint: Any) -> Any:
    """A value of the field's type."""
    value = _WORDS.get(text.lower(), _literal(text))
    value = text if value is _MISSING else value
    for wanted in _alternatives(hint):
        fitted = _fit(value, text, wanted)
        if fitted is not _MISSING:
            return fitted
    kinds = " or ".join(map(_name, _alternatives(hint)))
    raise ValueError(f"{name}={text!r}: this setting takes {kinds}")


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return " or ".join(str(member.value) for member in kind)
    return kind.__name__ if type(kind) is type else str(kind)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _fit(value: Any, text: str, wanted: Any) -> Any:
    origin = typing.get_origin(wanted)
    if origin is typing.Literal:
        return next((v for v in typing.get_args(wanted) if v in (value, text)), _MISSING)
    if origin is tuple and isinstance(value, list | tuple):
        return _fit_tuple(value, typing.get_args(wanted))
    if wanted is type(None):
        return None if value is None else _MISSING
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if wanted is str:
        return value if isinstance(value, str) else text
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        found = [member for member in wanted if member.value == value]
        return found[0] if found else _MISSING
    is_exact = isinstance(wanted, type) and type(value) is wanted
    return value if is_exact else _MISSING


def _fit_tuple(values: Sequence[Any], kinds: tuple[Any, ...]) -> Any:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(values)
    if len(kinds) != len(values):
        return _MISSING
    fitted = [_fit(v, repr(v), kind) for v, kind in zip(values, kinds, strict=True)]
    return _MISSING if any(value is _MISSING for value in fitted) else tuple(fitted)
