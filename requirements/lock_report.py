"""The text steps of lock.sh: requirements from metadata, lock files from pip's reports."""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
import zipfile
from pathlib import Path

# Their published builds need CUDA; see lock.sh.
CUDA_ONLY = {"torchvision", "torchaudio", "torchcodec"}


def normalised(name: str) -> str:
    """The canonical spelling of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    """The distribution that a requirement line names."""
    return normalised(re.split(r"[\s<>=!~;\[(]", requirement.strip(), maxsplit=1)[0])


def requires(wheel: Path, pyproject: Path) -> list[str]:
    """Requirement lines of the vLLM wheel and of this project with its [train] extra."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    wanted = [
        line.removeprefix("Requires-Dist: ")
        for line in lines
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    project = tomllib.loads(pyproject.read_text())["project"]
    wanted += project["dependencies"] + project["optional-dependencies"]["train"]
    # torch is pinned in cpu.in: the wheel's line spells a build tag that not every index uses.
    return [line for line in wanted if requirement_name(line) not in CUDA_ONLY | {"torch"}]


def lock(report: Path, extra: Path, without: Path | None) -> list[str]:
    """`name==version` lines of everything in pip's report, sorted by name.

    Raises:
        SystemExit: if pip resolved torch to a build other than the CPU one.
    """
    pins = {requirement_name(line): line for line in extra.read_text().split()}
    for item in json.loads(report.read_text())["install"]:
        name, version = normalised(item["metadata"]["name"]), item["metadata"]["version"]
        if name == "torch" and not version.endswith("+cpu"):
            sys.exit(
                f"pip resolved torch {version}, which is not the CPU build (+cpu); "
                "point pip at an index that has it (docs/install.md)"
            )
        pins[name] = f"{name}=={version.partition('+')[0]}"
    if without is not None:
        for line in without.read_text().splitlines():
            if line and not line.startswith("#"):
                pins.pop(requirement_name(line), None)
    return [pins[name] for name in sorted(pins)]


def cuda_libraries(report: Path) -> list[str]:
    """`name==version` lines of the CUDA libraries that torch's CUDA build requires."""
    installed = json.loads(report.read_text())["install"]
    pins = [f"{normalised(i['metadata']['name'])}=={i['metadata']['version']}" for i in installed]
    return sorted(pin for pin in pins if pin.startswith(("nvidia-", "cuda-")))


def main() -> None:
    """Print what lock.sh asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    step = parser.add_subparsers(dest="step", required=True)
    first = step.add_parser("requires")
    first.add_argument("wheel", type=Path)
    first.add_argument("pyproject", type=Path)
    second = step.add_parser("lock")
    second.add_argument("report", type=Path)
    second.add_argument("extra", type=Path)
    second.add_argument("--without", type=Path)
    third = step.add_parser("cuda")
    third.add_argument("report", type=Path)
    args = parser.parse_args()
    if args.step == "requires":
        print("\n".join(requires(args.wheel, args.pyproject)))
        return
    print("# Python 3.11, x86-64 Linux, CPU. Written by requirements/lock.sh; do not edit.")
    if args.step == "cuda":
        print("# The libraries of torch's CUDA build, for indexes without the CPU build.")
        print("\n".join(cuda_libraries(args.report)))
        return
    print("# A full closure: install it with `pip install --no-deps -r` (docs/install.md).")
    print("\n".join(lock(args.report, args.extra, args.without)))


if __name__ == "__main__":
    main()
