"""What pydantic finds wrong with a body, in one sentence: field, value, rule and a way out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel
from starlette.datastructures import UploadFile

_MAX_SHOWN = 60
_MAX_RULES = 4
_ABSENT = object()


class Found(NamedTuple):
    """What is wrong with a body.

    Args:
        sentence: for the client.
        field: where, dotted; None for the body as a whole.
    """

    sentence: str
    field: str | None


class _Problem(NamedTuple):
    """One error of pydantic's.

    Args:
        path: keys and indices of the body that lead to the value.
        branch: of a union: the names that pydantic puts between them.
        kind: pydantic's name for it.
        rule: what must hold.
        value: what was sent; `_ABSENT` where nothing was.
        said: the sentence of a check that writes its own.
    """

    path: tuple[str | int, ...]
    branch: tuple[str | int, ...]
    kind: str
    rule: str
    value: Any
    said: str = ""


def found(
    errors: Sequence[Mapping[str, Any]], body: Any, model: type[BaseModel] | None = None
) -> Found:
    """The first thing that is wrong.

    A field that may be of several kinds has an error for each; the kind that was meant is told by
    what it says of itself (`type` and the like) and by how far the value goes along with it.

    Args:
        errors: as pydantic lists them, `body` in front of each place.
        body: what came.
        model: what it is read as; tells which fields may be left out.
    """
    if (cut := _no_json(errors[0])) is not None:
        return Found(cut, None)
    problems = [_problem(error, body) for error in errors]
    first = next((one for one in problems if one.said), problems[0])
    if first.said:
        return Found(first.said, _dotted(first.path) or None)
    if not first.path:
        return Found(_of_the_body(first, body), None)
    problems = _meant([problem for problem in problems if problem.path[0] == first.path[0]])
    depth = max(len(problem.path) for problem in problems)
    deepest = [problem for problem in problems if len(problem.path) == depth]
    path = deepest[0].path
    here = [problem for problem in deepest if problem.path == path]
    name = _dotted(path)
    if all(problem.kind == "missing" for problem in here):
        return Found(f"{name} is missing; send it", name)
    here = [problem for problem in here if problem.kind != "missing"]
    # What is of the right type says more than what is of none of the others.
    here = [problem for problem in here if not problem.kind.endswith("_type")] or here
    rules = list(dict.fromkeys(problem.rule for problem in here))[:_MAX_RULES]
    if all(rule.startswith("must be ") for rule in rules):
        rules = ["must be " + " or ".join(rule.removeprefix("must be ") for rule in rules)]
    rule, value = " or ".join(rules), here[0].value
    if here[0].kind == "extra_forbidden":
        return Found(f"{name}={_shown(value)}: it {rule}; leave it out", name)
    field = None if model is None else _field(model, path[0])
    may_be_absent = len(path) == 1 and field is not None and not field.is_required()
    way_out = "; send such a value" + (", or leave it out" if may_be_absent else "")
    return Found(f"{name}={_shown(value)}: it {rule}{way_out}", name)


def _no_json(error: Mapping[str, Any]) -> str | None:
    """The sentence for a body that is no JSON; None for one that is."""
    place = list(error.get("loc") or ())[1:]
    if error.get("type") != "json_invalid" or not (place and isinstance(place[0], int)):
        return None
    why = str((error.get("ctx") or {}).get("error", "")).removesuffix(" at")
    return f"the body is no JSON ({why} at character {place[0]}); send a JSON object"


def _problem(error: Mapping[str, Any], body: Any) -> _Problem:
    keys = list(error.get("loc") or ())
    if keys and keys[0] in ("body", "query", "path", "header"):
        keys = keys[1:]
    kind, value = str(error.get("type", "")), body
    path: list[str | int] = []
    branch: list[str | int] = []
    for number, key in enumerate(keys):
        inner = _inside(value, key)
        is_last = number == len(keys) - 1
        if inner is not _ABSENT or (kind in ("missing", "extra_forbidden") and is_last):
            path.append(key)
            value = inner
        else:
            branch.append(key)
    names = [key for key in keys if isinstance(key, str) and re.fullmatch(r"\w+(\[\])?", key)]
    if names and not path:  # it was sent under another name
        path, value = [names[0]], error.get("input")
    text = str(error.get("msg", ""))
    said = text.removeprefix("Value error, ") if kind == "value_error" else ""
    if kind in _RANGES and not _is_finite(value):  # JSON has NaN, and a form has words
        kind = "finite_number"
    if "UploadFile" in said:  # pydantic's own, of FastAPI's file field
        said = ""
    return _Problem(tuple(path), tuple(branch), kind, _rule(kind, text), value, said)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return True


def _inside(value: Any, key: str | int) -> Any:
    if isinstance(value, Mapping) and key in value:
        return value[key]
    if isinstance(value, list) and isinstance(key, int) and key < len(value):
        return value[key]
    return _ABSENT


def _meant(problems: list[_Problem]) -> list[_Problem]:
    """Without the kinds of a union that say of themselves that they are not meant."""
    shallow = min(len(problem.path) for problem in problems)
    told = [one for one in problems if one.kind == "literal_error" and len(one.path) > shallow]
    others = {problem.branch for problem in told}
    left = [problem for problem in problems if problem.branch not in others]
    if told and left and max(len(one.path) for one in left) < max(len(one.path) for one in told):
        return told  # none of those that the value goes along with
    return left or problems


def _field(model: type[BaseModel], name: str | int) -> Any:
    for key, field in model.model_fields.items():
        if name in (key, field.alias):
            return field
    return None


_RANGES = ("greater_than_equal", "less_than_equal", "greater_than", "less_than")
_KINDS = {
    "dict_type": "must be an object",
    "model_attributes_type": "must be an object",
    "model_type": "must be an object",
    "mapping_type": "must be an object",
    "dataclass_type": "must be an object",
    "list_type": "must be a list",
    "string_type": "must be a string",
    "string_unicode": "must be text in UTF-8",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_from_float": "must be an integer",
    "int_parsing_size": "must be an integer of 64 bits",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "json_invalid": "must be JSON",
    "json_type": "must be JSON in a string",
    "extra_forbidden": "is not a field of this route",
    "none_required": "must be null",
}


def _rule(kind: str, message: str) -> str:
    if kind in _KINDS:
        return _KINDS[kind]
    if "UploadFile" in message:
        return "must be a file, a part of the form with a file name"
    message = message.replace(" a valid ", " a ").split(", unable")[0]
    return re.sub(r"^\w+ should ", "must ", message)


def _of_the_body(problem: _Problem, body: Any) -> str:
    if problem.kind == "string_unicode":
        return "the body holds text that is not UTF-8; send UTF-8"
    if body is None or problem.kind == "missing":
        return "there is no body; send a JSON object with the fields of this route"
    return f"the body is {_shown(body)}; send a JSON object with the fields of this route"


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(str(key) for key in path)[:200]


def _shown(value: Any) -> str:
    """A value in a message: short, whatever its size."""
    if value is None:
        return "null"
    if isinstance(value, UploadFile):
        return f"the file {(value.filename or '')[:_MAX_SHOWN]!r}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, str):
        return repr(value[:_MAX_SHOWN])
    if isinstance(value, list | dict) and len(value) > 4:
        what = "a list of {} items" if isinstance(value, list) else "an object of {} fields"
        return what.format(len(value))
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested without end, or a number of too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
