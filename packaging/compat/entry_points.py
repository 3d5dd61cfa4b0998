"""Make the entry points of a checkout visible without installing it.

    python packaging/compat/entry_points.py ROOT FOLDER

Writes FOLDER/vllm_dynin-0.dist-info; with ROOT and FOLDER on PYTHONPATH, vLLM finds the plugin. For
machines without a network, and for environments that serve several checkouts.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def write(root: Path, folder: Path) -> Path:
    """The written metadata's folder."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    info = folder / f"vllm_dynin-{project['version']}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm-dynin\nVersion: {project['version']}\n"
    )
    groups = {"console_scripts": project["scripts"]} | project["entry-points"]
    lines = []
    for group, names in groups.items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in names.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return info


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), Path(sys.argv[2])), file=sys.stderr)
