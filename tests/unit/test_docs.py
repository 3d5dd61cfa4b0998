"""The documentation agrees with the code it describes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vllm_dynin
from vllm_dynin.sampling.params import DenoiseParams

ROOT = Path(vllm_dynin.__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_options_table_is_that_of_the_struct() -> None:
    names = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert names == list(DenoiseParams.__struct_fields__)
    script = ROOT / "packaging" / "options_table.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_requests_in_snippets_can_be_made(snippet) -> None:
    """Every `dynin.X(…)` that needs no engine is built as written, with its keyword names."""
    scope = {"dynin": vllm_dynin, "DenoiseParams": DenoiseParams, "mask": None}
    calls = [
        node
        for node in ast.walk(ast.parse(snippet))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).startswith("dynin.")
        and ast.unparse(node.func) not in ("dynin.generate", "dynin.Inpaint.outward")
    ]
    for call in calls:
        eval(ast.unparse(call), scope)
    names = {ast.unparse(call.func).split(".")[1] for call in calls}
    assert names <= set(dir(vllm_dynin))


def test_every_exported_name_is_there() -> None:
    for name in vllm_dynin._EXPORTS:
        assert getattr(vllm_dynin, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = vllm_dynin.Nothing


def test_every_exported_request_is_documented() -> None:
    assert len(SNIPPETS) >= 4
    missing = [name for name in vllm_dynin._REQUESTS if f"dynin.{name}(" not in PAGE]
    assert not missing
