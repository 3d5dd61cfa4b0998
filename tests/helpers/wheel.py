"""The wheel as `make wheel` builds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build_wheel(folder: Path) -> Path:
    """Build it into a folder and return its path."""
    done = subprocess.run(
        ["bash", ROOT / "packaging" / "make_wheel.sh", sys.executable, folder],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    assert done.stdout.split() == [str(path)]
    return path
