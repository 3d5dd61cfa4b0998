"""The script of docs/first-gpu-run.md goes through to its end, on a CPU at a small size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_every_direction_answers() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "packaging" / "first_start.py"), "--size", "tiny"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert sum(line.startswith("ANSWER") for line in lines) == 16
    assert lines[-1] == "DONE"
