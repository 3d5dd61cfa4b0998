"""Write the tables of fields in docs/serving.md from the rules of the routes, or check them.

python packaging/fields_table.py [--check]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_dynin.entrypoints.http.fields import ROUTES, Rule

PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
BEGIN = "<!-- fields: written by packaging/fields_table.py -->"
END = "<!-- end of fields -->"


def values(them: tuple[Any, ...]) -> str:
    """Values as a reader sees them in JSON."""
    return ", ".join(f"`{json.dumps(value)}`" for value in them if value != [""])


def words(rule: Rule) -> str:
    """What is done with a field."""
    if rule.decision == "engine":
        return f"refused unless {values(rule.values or ())}"
    if rule.decision == "ignored":
        but = f"; {values(rule.default)} without the header" if rule.default else ""
        return f"ignored{but}"
    if rule.decision == "accepted" and rule.values is not None:
        return f"refused unless {values(rule.values)}"
    return rule.decision


def section(route: str, rules: Mapping[str, Rule]) -> str:
    """The part of the page about one route."""
    honoured = [name for name, rule in rules.items() if rule.decision == "honoured"]
    lines = [f"**{route}.** Honoured: {', '.join(f'`{name}`' for name in sorted(honoured))}.", ""]
    others = {name: rule for name, rule in sorted(rules.items()) if name not in honoured}
    if others:
        lines += ["| field | | |", "|---|---|---|"]
        lines += [f"| `{name}` | {words(rule)} | {rule.why} |" for name, rule in others.items()]
        lines.append("")
    return "\n".join(lines)


def rewritten(page: str) -> str:
    """The page with its tables renewed."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    tables = "\n".join(section(route, rules) for route, rules in ROUTES.items())
    return f"{before}{BEGIN}\n{tables}{END}{after}"


def main() -> int:
    """Write or check; 1 where the page is not as it should be."""
    page = PAGE.read_text()
    new = rewritten(page)
    if "--check" in sys.argv[1:]:
        return int(new != page)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
