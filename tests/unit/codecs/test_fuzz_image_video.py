import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("kind", ["image", "video"])
def test_500_mutated_files(kind):
    """The longer run is the same command with --files; it says what happened to each kind."""
    command = [sys.executable, "-m", "helpers.fuzz_media", kind, "--files", "500", "--seed", "0"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 failures" in run.stdout
    # both ends are really exercised: some files are still readable, many are not
    assert "'read'" in run.stdout and "'refused'" in run.stdout
