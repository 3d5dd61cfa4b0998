"""What the package touches of vLLM, found in its own sources.

* every name that is imported from vLLM, and attributes of it (`InputProcessor.process_inputs`);
* calls of such names, with the arguments that are passed;
* methods and attributes of classes that derive from one of vLLM's;
* what implements one of vLLM's protocols without deriving from it, and kernels that are replaced:
  named below, because no import tells.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vllm_sources import Function, Signature, signature, traits

IMPLEMENTED = {
    "vllm_dynin.entrypoints.http.plugin.DyninEndpoints": (
        "vllm.plugins.endpoint_plugins.interface.EndpointPlugin"
    ),
    "vllm_dynin.model_executor.engine_sampler.MaskedDiffusionSampler": (
        "vllm.v1.worker.gpu.sample.sampler.Sampler"
    ),
    "vllm_dynin.model_executor.masked_diffusion.MaskedDiffusionLM": (
        "vllm.model_executor.models.interfaces_base.VllmModelForTextGeneration"
    ),
}
"""Our class, and the one of vLLM in whose place it is used. Methods that both have must agree."""

STATED = (
    "vllm.triton_utils.dispatcher._registry",
    "vllm.v1.worker.gpu.structured_outputs.StructuredOutputsWorker",
)
"""Symbols that are reached in ways that are not seen here."""


@dataclass
class Call:
    """A call of one of vLLM's functions: how many arguments by position, and which by name."""

    symbol: str
    where: str
    positional: int
    keywords: list[str]
    open: bool
    """Whether it passes `*` or `**` arguments, of which nothing is known here."""


@dataclass
class Derived:
    """A class of ours that derives from, or stands in for, one of vLLM's."""

    name: str
    base: str
    methods: dict[str, tuple[Signature, list[str], str]] = field(default_factory=dict)
    """Name → parameters, traits, and where."""
    attributes: dict[str, str] = field(default_factory=dict)
    """Attributes of `self` that the class does not set itself → where it reads them."""
    stands_in: bool = False


@dataclass
class Touched:
    """All of it. `symbols`: dotted name → where it is first used."""

    symbols: dict[str, str] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    derived: list[Derived] = field(default_factory=list)
    kernels: dict[str, list[list[str]]] = field(default_factory=dict)
    """vLLM's kernel → the arguments of each function that may replace it."""


def touched(package: Path) -> Touched:
    """Read every module of a package."""
    found = Touched()
    constructed = set()
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        tree = ast.parse(path.read_text())
        _Module(found, module.removesuffix(".__init__"), tree).read()
        calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        constructed |= {func.id for func in calls if isinstance(func, ast.Name)}
    for derived in found.derived:
        # What is constructed here is not constructed by vLLM, and may take what it likes.
        if derived.name.rpartition(".")[2] in constructed:
            derived.methods.pop("__init__", None)
    for symbol in STATED:
        found.symbols.setdefault(symbol, "packaging/compat/touched.py")
    return found


class _Module(ast.NodeVisitor):
    """One module. `scopes`: names of vLLM's things, innermost last; None hides an outer one.

    A parameter that is annotated with one of vLLM's classes stands for it, so that
    `def f(config: VllmConfig): config.model_config` touches `vllm.config.VllmConfig.model_config`.
    """

    def __init__(self, found: Touched, module: str, tree: ast.Module) -> None:
        self.found, self.module, self.tree = found, module, tree
        self.scopes: list[dict[str, str | None]] = [dict(_imports(tree))]

    def where(self, node: ast.AST) -> str:
        """Module and line."""
        return f"{self.module}:{getattr(node, 'lineno', 0)}"

    def read(self) -> None:
        """Fill in `found`."""
        for name in self.scopes[0].values():
            assert name is not None
            self.found.symbols.setdefault(name, self.module)
        self.visit(self.tree)

    def symbol(self, node: ast.expr | None) -> str | None:
        """The dotted name of vLLM that an expression is, if it is one."""
        if isinstance(node, ast.Name):
            return next((s[node.id] for s in reversed(self.scopes) if node.id in s), None)
        if isinstance(node, ast.Attribute):
            base = self.symbol(node.value)
            return f"{base}.{node.attr}" if base else None
        return None

    def _annotated(self, node: ast.expr | None) -> str | None:
        """The class that an annotation names: `X`, `"X"`, `X | None`."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return self._annotated(node.left)
        return self.symbol(node)

    def _function(self, node: Function) -> None:
        arguments = node.args
        scope = {
            a.arg: self._annotated(a.annotation)
            for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        }
        self.scopes.append(scope)
        self.generic_visit(node)
        self.scopes.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = _function

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            else:
                pairs = [(target, node.value)]
            for name, value in pairs:
                if isinstance(name, ast.Name) and len(self.scopes) > 1:
                    self.scopes[-1][name.id] = self.symbol(value)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        symbol = self.symbol(node)
        if symbol:
            self.found.symbols.setdefault(symbol, self.where(node))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        symbol = self.symbol(node.func)
        if symbol is not None:
            keywords = [keyword.arg for keyword in node.keywords]
            is_open = any(isinstance(a, ast.Starred) for a in node.args) or None in keywords
            names = [name for name in keywords if name]
            call = Call(symbol, self.where(node), len(node.args), names, is_open)
            self.found.calls.append(call)
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._class(node)
        self.generic_visit(node)

    def _class(self, node: ast.ClassDef) -> None:
        bases = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
        symbols = [symbol for base in bases if (symbol := self.symbol(base))]
        stand_in = IMPLEMENTED.get(f"{self.module}.{node.name}")
        for symbol in [*symbols, *([stand_in] if stand_in else [])]:
            derived = Derived(f"{self.module}.{node.name}", symbol, stands_in=symbol == stand_in)
            self.found.symbols.setdefault(symbol, self.where(node))
            for part in node.body:
                if isinstance(part, Function):
                    place = self.where(part)
                    derived.methods[part.name] = (signature(part), traits(part), place)
            # With a base of our own, what an attribute comes from cannot be told here.
            if not derived.stands_in and len(symbols) == len(bases):
                derived.attributes = self._attributes(node)
            self.found.derived.append(derived)

    def _attributes(self, node: ast.ClassDef) -> dict[str, str]:
        read, own = dict[str, str](), set[str]()
        for part in node.body:
            if isinstance(part, Function):
                own.add(part.name)
            elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                own.add(part.target.id)
            elif isinstance(part, ast.Assign):
                own |= {t.id for t in part.targets if isinstance(t, ast.Name)}
        for part in ast.walk(node):
            if not isinstance(part, ast.Attribute):
                continue
            is_super = isinstance(part.value, ast.Call) and ast.unparse(part.value) == "super()"
            is_self = isinstance(part.value, ast.Name) and part.value.id == "self"
            if is_super or (is_self and isinstance(part.ctx, ast.Load)):
                read.setdefault(part.attr, self.where(part))
            elif is_self:
                own.add(part.attr)
        supers = {
            part.attr
            for part in ast.walk(node)
            if isinstance(part, ast.Attribute)
            and isinstance(part.value, ast.Call)
            and ast.unparse(part.value) == "super()"
        }
        read.pop("__init__", None)  # every class has one
        return {name: place for name, place in read.items() if name not in own or name in supers}


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names a module knows from vLLM, and what they are."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "vllm":
                    yield (alias.asname, alias.name) if alias.asname else ("vllm", "vllm")
