"""The layer map of style and README, enforced: who may import whom, and who may import vLLM."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "vllm_dynin"
MODULES = sorted(PACKAGE.rglob("*.py"))

# layer → the layers of ours that it may import. A layer may always import itself.
BASE = {"tokens", "config", "canvas", "envs"}
MAY_IMPORT: dict[str, set[str]] = {
    "tokens": set(),
    "canvas": set(),
    "envs": set(),
    "config": {"tokens"},
    "checkpoint": {"tokens", "config"},
    "kernels": {"envs"},
    "kv_memory": {"config", "sizing"},
    "sampling": BASE | {"kernels"},
    "step_counts": set(),
    "processors": BASE | {"checkpoint", "defaults", "kernels", "sampling"},
    "defaults": BASE | {"sampling"},
    "planning": BASE | {"defaults", "processors", "sampling"},
    "report": set(),
    "codec_runner": BASE | {"processors"},
    "trajectory": BASE | {"sampling"},
    "outputs": BASE | {"processors", "sampling", "defaults", "planning", "codec_runner"},
    "requests": BASE | {"processors", "sampling", "defaults", "planning", "codec_runner"},
    "fetch": BASE | {"checkpoint", "processors"},
    "quantization": BASE | {"checkpoint"},
    "reference": BASE | {"checkpoint", "kernels", "sampling", "processors", "defaults", "planning"},
    "compat": BASE | {"kernels", "processors", "sampling"},
    "sizing": BASE | {"checkpoint", "sampling"},
    "model_executor": BASE
    | {"report", "step_counts", "checkpoint", "kernels", "kv_memory", "sampling", "processors"}
    | {"defaults", "planning", "compat", "sizing"},
    "training_ext": BASE
    | {"checkpoint", "defaults", "kernels", "sampling", "processors", "planning", "reference"}
    | {"api", "requests", "codec_runner"},  # evaluate/ asks the engine, as a client does
}
# May import anything of ours; training_ext only inside a function, so that serving never does.
TOP = {"__init__", "entrypoints", "api"}
# The only places that may need vLLM to be imported themselves; entrypoints/ for what vLLM wants to
# be a subclass of one of its own, and for the routes, which vLLM's server loads.
NEEDS_VLLM = (
    "model_executor/",
    "processors/multimodal.py",
    "processors/media_items.py",
    "compat.py",
    "entrypoints/reasoning.py",
    "entrypoints/http/",
    "entrypoints/metrics.py",
    "entrypoints/media_connector.py",
    "entrypoints/media_io/",
    "entrypoints/public_connection.py",
)
# These may import it inside a function.
MAY_IMPORT_VLLM_LAZILY = (
    "__init__.py",
    "entrypoints/",
    "sampling/params.py",
    "api.py",
    "outputs.py",
    "training_ext/evaluate/",
)


def layer_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


class Import(NamedTuple):
    name: str
    """Dotted."""
    at_top: bool
    """It runs when its module is imported, not in a function."""
    runs: bool
    """It is not for type checkers alone."""
    line: int


def imports(path: Path) -> Iterator[Import]:
    """Every import of a module."""

    def visit(body: list[ast.stmt], top: bool, runs: bool) -> Iterator[Import]:
        for node in body:
            if is_type_checking(node):
                yield from visit(node.body, False, False)
                continue
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, top, runs, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    package = (PACKAGE.name, *path.relative_to(PACKAGE).parent.parts)
                    base = ".".join([*package[: len(package) - node.level + 1], base]).strip(".")
                for alias in node.names:
                    yield Import(f"{base}.{alias.name}", top, runs, node.lineno)
            inner = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for field in ("body", "orelse", "finalbody"):
                children = getattr(node, field, None)
                if isinstance(children, list):
                    yield from visit(children, inner, runs)
            for handler in getattr(node, "handlers", []):
                yield from visit(handler.body, inner, runs)

    yield from visit(ast.parse(path.read_text()).body, True, True)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_layers(path: Path) -> None:
    layer, relative = layer_of(path), path.relative_to(PACKAGE).as_posix()
    assert layer in MAY_IMPORT or layer in TOP, f"{relative}: a new layer; add it to MAY_IMPORT"
    for name, at_top, runs, line in imports(path):
        where = f"{relative}:{line} imports {name}"
        if name.split(".")[0] == "vllm" and runs:
            lazily = relative.startswith(MAY_IMPORT_VLLM_LAZILY) and not at_top
            assert relative.startswith(NEEDS_VLLM) or lazily, where
        if name.split(".")[0] != PACKAGE.name or name == PACKAGE.name:
            continue
        target = name.split(".")[1]
        if target == layer:
            continue
        if not ((PACKAGE / target).is_dir() or (PACKAGE / f"{target}.py").exists()):
            target = "__init__"  # a name that the package itself defines
        if layer in TOP:
            assert target != "training_ext" or not at_top, where
        else:
            assert target in MAY_IMPORT[layer], f"{where}; {layer} may import {MAY_IMPORT[layer]}"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph() -> dict[str, set[str]]:
    """Module → the modules of ours that it names in imports, lazy ones and those for types too."""
    names = {module_name(path) for path in MODULES}
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        graph[module_name(path)] = targets = set[str]()
        for found in imports(path):
            target = found.name
            while target and target not in names:
                target = target.rpartition(".")[0]
            targets |= {target} - {"", module_name(path)}
    return graph


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """One way round in a graph, or nothing."""
    done: set[str] = set()

    def walk(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        for after in sorted(graph[node] - done):
            if found := walk(after, [*way, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def test_no_module_imports_itself_by_a_way_round() -> None:
    """Arrows go one way. An import in a function or for a type checker is an arrow as well."""
    graph = import_graph()
    assert len(graph) > 200
    assert sum(map(len, graph.values())) > 500
    assert cycle(graph) == []


def test_the_layers_themselves_have_an_order() -> None:
    """Two layers that may import each other would be one."""
    assert cycle(MAY_IMPORT | {name: set() for name in TOP}) == []


def test_nothing_that_serves_trains() -> None:
    """Optimisers and gradients belong to training_ext/, codecs that are fitted included."""
    words = re.compile(r"\.backward\(|\boptim\b")
    found = {layer_of(path) for path in MODULES if words.search(path.read_text())}
    assert found == {"training_ext"}


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_light() -> None:
    """vLLM loads every plugin in every process, so the import itself must cost nothing."""
    heavy = run(
        "import sys, vllm_dynin\n"
        "print(*sorted({'torch', 'vllm', 'transformers', 'numpy', 'triton'} & set(sys.modules)))"
    )
    assert heavy.split() == []


def importable() -> list[str]:
    """Dotted names of everything that must import without vLLM."""
    names = []
    for path in MODULES:
        relative = path.relative_to(PACKAGE)
        if relative.as_posix().startswith(NEEDS_VLLM) or path.name == "__main__.py":
            continue
        parts = relative.parent.parts if path.stem == "__init__" else relative.with_suffix("").parts
        names.append(".".join([PACKAGE.name, *parts]))
    return names


def test_modules_import_without_vllm() -> None:
    """Where vLLM is not installed everything else imports, and serving loads no training code."""
    names = importable()
    training = [name for name in names if name.startswith("vllm_dynin.training_ext")]
    serving = [name for name in names if name not in training]
    assert len(serving) > 30
    loaded = run(
        "import importlib, sys\n"
        "class NoVLLM:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'vllm':\n"
        "            raise ModuleNotFoundError(f'{name} is hidden by the test')\n"
        "sys.meta_path.insert(0, NoVLLM())\n"
        f"for name in {serving!r}:\n"
        "    importlib.import_module(name)\n"
        "print(*[name for name in sys.modules if 'training_ext' in name])\n"
        f"for name in {training!r}:\n"
        "    importlib.import_module(name)\n"
    )
    assert loaded.split() == []
