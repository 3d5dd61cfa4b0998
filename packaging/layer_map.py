"""Write README's layer map from the first docstring lines of all modules, or check it.

python packaging/layer_map.py [--check]
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- layer map: written by packaging/layer_map.py -->", "<!-- end of layer map -->"


def summary(path: Path) -> str:
    """The first line of a module's docstring.

    Raises:
        ValueError: if there is none: a file without a stated purpose has no row.
    """
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    if not docstring:
        raise ValueError(f"{path} has no docstring; its first line is the file's row in README")
    return docstring.splitlines()[0]


def rows(folder: Path) -> list[str]:
    """Markdown rows: files of a folder, then its sub-folders, each headed by its package's line."""
    found = []
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            found.append(f"| `{path.relative_to(ROOT)}` | {summary(path)} |")
    for child in sorted(folder.iterdir()):
        if (child / "__init__.py").exists():
            found.append(
                f"| **`{child.relative_to(ROOT)}/`** | **{summary(child / '__init__.py')}** |"
            )
            found += rows(child)
    return found


def layer_map() -> str:
    """The whole table."""
    package = ROOT / "vllm_dynin"
    head = ["| file | what it holds |", "|---|---|"]
    first = f"| **`{package.name}/`** | **{summary(package / '__init__.py')}** |"
    return "\n".join([BEGIN, *head, first, *rows(package), END])


def main() -> None:
    """Rewrite README.md, or exit with one line if `--check` finds it out of date."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    current = before + layer_map() + rest.partition(END)[2]
    if current == text:
        return
    if "--check" in sys.argv:
        sys.exit("README.md: the layer map is out of date; run `make format`")
    readme.write_text(current)


if __name__ == "__main__":
    main()
