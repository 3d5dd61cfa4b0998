"""Does every override and every use of vLLM's internals fit each supported version of vLLM?

    python packaging/compat/signatures.py                check against the recorded digest
    python packaging/compat/signatures.py sources        and against the installed sources
    python packaging/compat/signatures.py renew PLACE…   renew the digest from versions' sources

PLACE is a wheel of vLLM, or a folder that holds `vllm/` (a site-packages). The digest holds, for
each version, the signatures of what this package touches and no source, so that both versions are
checked on a machine that has neither. It is renewed when the package touches something else, or a
new version is to be supported: then the differences printed are what has to be looked at.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from touched import Call, Touched, touched
from vllm_sources import (
    Found,
    Function,
    Signature,
    Sources,
    body_hash,
    read,
    signature,
    traits,
    written,
)

ROOT = Path(__file__).parents[2]
DIGEST = ROOT / "packaging" / "compat" / "signatures.json"
SUPPORTED = ("0.32", "0.33")

Facts = dict[str, Any]
"""`symbols`, `members` and `kernels` of one version; None where it has no such thing."""

ONE_VERSION: dict[str, str] = {}
"""Overrides of methods that only one version has, and why that is right."""


def all_touched() -> Touched:
    """What the package touches, the replaced kernels included."""
    sys.path.insert(0, str(ROOT))
    from vllm_dynin.compat import kernel_arguments
    from vllm_dynin.kernels.runner_cpu import OVERRIDES

    found = touched(ROOT / "vllm_dynin")
    found.kernels = {
        name: [kernel_arguments(function) for function in functions]
        for name, functions in OVERRIDES.items()
    }
    return found


# --- facts: what a version's sources say ----------------------------------------------------------


def facts(found: Touched, sources: Sources) -> Facts:
    """Everything about one version that the checks need."""
    members: dict[str, dict[str, Any]] = {}
    for derived in found.derived:
        base = _resolve(sources, derived.base)
        names = members.setdefault(derived.base, {})
        for name in sorted({*derived.methods, *derived.attributes}):
            names[name] = _member(sources, base, name)
    called = {call.symbol for call in found.calls}
    return {
        "symbols": {name: _symbol(sources, name, name in called) for name in sorted(found.symbols)},
        "members": {name: members[name] for name in sorted(members)},
        "kernels": {name: _kernel(sources, name) for name in sorted(found.kernels)},
    }


def _resolve(sources: Sources, name: str) -> Found | None:
    """The definition behind a dotted name: a module, something in one, or a member of that."""
    parts = name.split(".")
    here: Found | None = Found(parts[0], None, "module")
    for part in parts[1:]:
        if here is None or here.kind == "external":
            return here
        if here.kind == "module":
            here = sources.find(here.module, part)
        else:
            owner = here if here.kind == "class" else sources.type_of(here)
            if owner is None or owner.kind != "class":
                return Found(here.module, None, "external")  # of a type that is not vLLM's
            here = sources.member(owner, part)
    return here


def _symbol(sources: Sources, name: str, is_called: bool) -> Any:
    here = _resolve(sources, name)
    if here is None:
        return None
    entry: dict[str, Any] = {"kind": here.kind}
    if not is_called:
        return entry
    if here.kind == "class":
        fields = sources.constructor(here)
        return entry if fields is None else entry | {"call": written(fields)}
    return entry | _called(here) if here.kind == "function" else entry


def _called(here: Found) -> dict[str, Any]:
    assert isinstance(here.node, Function)
    entry: dict[str, Any] = {"call": written(signature(here.node))}
    if traits(here.node):
        entry["traits"] = traits(here.node)
    return entry


def _member(sources: Sources, base: Found | None, name: str) -> Any:
    here = sources.member(base, name) if base is not None and base.kind == "class" else None
    if here is None:
        return None
    if here.kind != "function":
        return {"kind": here.kind}
    assert here.node is not None
    return {"kind": "function", **_called(here), "body": body_hash(here.node)}


def _kernel(sources: Sources, name: str) -> Any:
    here = _resolve(sources, name)
    if here is None or here.kind != "function":
        return None
    assert isinstance(here.node, Function)
    names = [entry[0] for entry in signature(here.node)]
    return {"arguments": names, "body": body_hash(here.node)}


# --- checks ---------------------------------------------------------------------------------------


def problems(found: Touched, versions: dict[str, Facts]) -> list[str]:
    """What does not fit, a line each; versions are named by their keys."""
    lines: list[str] = []
    for version, known in versions.items():
        for check in (_symbols, _calls, _methods, _attributes, _kernels):
            lines += [f"vLLM {version}: {line}" for line in check(found, known)]
    return lines + _one_version(found, versions)


def _symbols(found: Touched, known: Facts) -> list[str]:
    lines = []
    for name, where in found.symbols.items():
        if name not in known["symbols"]:
            lines.append(f"{name} ({where}) is not in the digest; renew it")
        elif known["symbols"][name] is None:
            lines.append(f"{name} ({where}) does not exist")
    return lines


def _calls(found: Touched, known: Facts) -> list[str]:
    lines = []
    for call in found.calls:
        entry = known["symbols"].get(call.symbol)
        if entry and entry.get("call") is not None and "property" not in entry.get("traits", ()):
            parameters = read(entry["call"])
            is_method = parameters and parameters[0][0] in ("self", "cls")
            why = _refused(parameters, call)
            if is_method and why:  # called on an instance, and not with one as first argument
                why = _refused(parameters[1:], call)
            if why:
                lines.append(f"{call.symbol} as called in {call.where}: {why}")
    return lines


def _refused(parameters: Signature, call: Call) -> str | None:
    names = {name for name, kind, _ in parameters if kind in ("p", "k")}
    positional = [name for name, kind, _ in parameters if kind == "p"]
    kinds = {kind for _, kind, _ in parameters}
    if call.positional > len(positional) and "*" not in kinds:
        return f"{call.positional} arguments by position, it takes {len(positional)}"
    unknown = [name for name in call.keywords if name not in names]
    if unknown and "**" not in kinds:
        return f"it takes no {', '.join(unknown)}"
    given = {*positional[: call.positional], *call.keywords}
    wanted = [name for name, kind, default in parameters if kind in ("p", "k") and not default]
    missing = [name for name in wanted if name not in given]
    if missing and not call.open:
        return f"it wants {', '.join(missing)} too"
    return None


def _methods(found: Touched, known: Facts) -> list[str]:
    lines = []
    for derived in found.derived:
        base = known["members"].get(derived.base)
        for name, (ours, our_traits, where) in derived.methods.items():
            if base is None or name not in base:
                lines.append(f"{derived.base}.{name} ({where}) is not in the digest; renew it")
                continue
            theirs = base[name]
            if theirs is None or theirs["kind"] != "function":
                continue
            why = unfit(ours, read(theirs["call"]))
            their_traits = theirs.get("traits", [])
            if our_traits != their_traits:
                why = why or f"ours is {our_traits or 'plain'}, theirs {their_traits or 'plain'}"
            if why:
                lines.append(f"{derived.name}.{name} ({where}) overrides {derived.base}: {why}")
    return lines


def unfit(ours: Signature, theirs: Signature) -> str | None:
    """Why a call that fits their parameters need not fit ours; None if it always does."""
    kinds = {kind for _, kind, _ in ours}
    our_positional = [entry for entry in ours if entry[1] == "p"]
    by_name = {entry[0]: entry for entry in ours if entry[1] in ("p", "k")}
    place = 0
    for name, kind, has_default in theirs:
        if kind == "p":
            mine = our_positional[place] if place < len(our_positional) else None
            place += 1
            if mine is None:
                # vLLM constructs models by keyword.
                if name in by_name and "self" in by_name and "vllm_config" in by_name:
                    continue
                if not {"*", "**"} <= kinds:
                    return f"ours takes no {name}"
            elif mine[0] != name and mine[0] not in ("self", "cls"):
                return f"ours has {mine[0]} where theirs has {name}"
            elif has_default and not mine[2]:
                return f"{name} may be left out of theirs"
        elif kind == "k" and name not in by_name and "**" not in kinds:
            return f"ours takes no {name}"
        elif kind == "**" and "**" not in kinds:
            return "theirs takes any keyword"
    names = {entry[0] for entry in theirs}
    for name, kind, has_default in ours:
        if kind in ("p", "k") and not has_default and name not in names and name != "self":
            return f"ours wants {name}, which is not passed"
    return None


def _attributes(found: Touched, known: Facts) -> list[str]:
    lines = []
    for derived in found.derived:
        base = known["members"].get(derived.base, {})
        others = [d for d in found.derived if d.name == derived.name and not d.stands_in]
        for name, where in derived.attributes.items():
            if name not in base:
                lines.append(f"{derived.base}.{name} ({where}) is not in the digest; renew it")
            elif all(known["members"].get(d.base, {}).get(name) is None for d in others):
                lines.append(f"{derived.base} has no {name}, which {where} reads")
    return lines


def _kernels(found: Touched, known: Facts) -> list[str]:
    lines = []
    for name, replacements in found.kernels.items():
        theirs = known["kernels"].get(name)
        if theirs is None:
            lines.append(f"{name} does not exist, or is not in the digest")
        elif theirs["arguments"] not in replacements:
            lines.append(f"no replacement of {name} takes {theirs['arguments']}")
    return lines


def _one_version(found: Touched, versions: dict[str, Facts]) -> list[str]:
    """An override that one version calls and another does not know is dead in the other."""
    lines = []
    for derived in found.derived:
        for name in derived.methods:
            without = [
                version
                for version, known in versions.items()
                if known["members"].get(derived.base, {}).get(name) is None
            ]
            full = f"{derived.name}.{name}"
            if without and len(without) < len(versions) and full not in ONE_VERSION:
                lines.append(f"{full}: {derived.base} has no such method in {', '.join(without)}")
    return lines


def changed_bodies(versions: dict[str, Facts]) -> list[str]:
    """Overridden methods and replaced kernels whose own code differs between versions."""
    first, *others = versions
    lines = []
    for kind in ("members", "kernels"):
        for name, entry in versions[first][kind].items():
            inner = entry if kind == "members" else {"": entry}
            for part, fact in (inner or {}).items():
                for other in others:
                    theirs = versions[other][kind].get(name) or {}
                    theirs = theirs.get(part) if kind == "members" else theirs
                    if fact and theirs and fact.get("body") != theirs.get("body"):
                        lines.append(f"{name}{'.' if part else ''}{part}: {first} → {other}")
    return lines


def installed() -> Sources | None:
    """The vLLM of this environment."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        return None
    return Sources(Path(found.submodule_search_locations[0]).parent)


def recorded() -> dict[str, Facts]:
    """The digest."""
    return json.loads(DIGEST.read_text())


def renew(places: list[Path]) -> None:
    """Write the digest from versions' sources; versions not named keep their entry."""
    found = all_touched()
    versions = recorded() if DIGEST.exists() else {}
    for place in places:
        sources = Sources(place)
        versions[sources.version] = facts(found, sources)
    lines = json.dumps({v: versions[v] for v in sorted(versions)}, separators=(",", ":"))
    # A line for each symbol, so that a renewal reads as a diff.
    lines = lines.replace(',"vllm.', ',\n"vllm.').replace('},"', '},\n"')
    DIGEST.write_text(lines + "\n")
    print("\n".join(changed_bodies(versions)))


def main() -> int:
    """Exit status 1 and a line for each thing that does not fit."""
    if sys.argv[1:2] == ["renew"]:
        renew([Path(name) for name in sys.argv[2:]])
    found, versions = all_touched(), recorded()
    if sys.argv[1:2] == ["sources"]:
        sources = installed()
        assert sources is not None, "no vLLM is installed here"
        versions = versions | {f"{sources.version} (installed)": facts(found, sources)}
    wrong = problems(found, versions)
    print("\n".join(wrong) or f"everything fits {', '.join(versions)}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
