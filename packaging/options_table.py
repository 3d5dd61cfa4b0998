"""Write the options table of docs/python.md from `DenoiseParams`, or check it.

python packaging/options_table.py [--check]
"""

from __future__ import annotations

import ast
import enum
import sys
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from vllm_dynin.sampling.params import DenoiseParams

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "vllm_dynin" / "sampling" / "params.py"
PAGE = ROOT / "docs" / "python.md"
BEGIN = "<!-- options: written by packaging/options_table.py -->"
END = "<!-- end of options -->"


def documentation() -> dict[str, str]:
    """What stands below each field of the struct, in order.

    Raises:
        ValueError: a field has no documentation.
    """
    module = ast.parse(SOURCE.read_text())
    struct = next(
        node
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name == "DenoiseParams"
    )
    found = {}
    for node, below in zip(struct.body, struct.body[1:], strict=False):
        if not isinstance(node, ast.AnnAssign):
            continue
        name = ast.unparse(node.target)
        if not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)):
            raise ValueError(f"DenoiseParams.{name} has no documentation below it")
        found[name] = " ".join(str(below.value.value).split())
    return found


def kind(hint: Any) -> str:
    """Type and range of a field, without `None`, for a reader."""
    hint = next((part for part in get_args(hint) if part is not NoneType), hint)
    if get_origin(hint) is Annotated:
        base, meta = get_args(hint)
        low = f"{meta.ge:g} to" if meta.ge is not None else f"above {meta.gt:g}, up to"
        return f"{base.__name__}, {low} {meta.le:,}"
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in hint)
    return "token ids" if get_origin(hint) is tuple else hint.__name__


def table() -> str:
    """The whole table."""
    hints = get_type_hints(DenoiseParams, include_extras=True)
    rows = ["| option | value | what it does |", "|---|---|---|"]
    for name, text in documentation().items():
        escaped = text.replace("|", "\\|")
        rows.append(f"| `{name}` | {kind(hints[name])} | {escaped} |")
    return "\n".join([BEGIN, *rows, END])


def main() -> None:
    """Rewrite the page, or exit with one line if `--check` finds it out of date."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    current = before + table() + rest.partition(END)[2]
    if current == text:
        return
    if "--check" in sys.argv:
        sys.exit("docs/python.md: the options table is out of date; run `make format`")
    PAGE.write_text(current)


if __name__ == "__main__":
    main()
