"""A run of the tests says at its end what it left out, in one line each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.left_out import REMEDIES

TESTS = Path(__file__).parents[1]
SOME = """
import pytest

@pytest.mark.skipif(True, reason="flite is not installed")
@pytest.mark.parametrize("n", [1, 2])
def test_speaks(n): ...

def test_hears():
    pytest.skip("requirements/eval.lock is not installed")

@pytest.mark.gpu
def test_on_a_gpu(): ...

@pytest.mark.xfail
def test_known(): assert False

def test_passes(): ...
"""


def lines_of(folder: Path, *options: str) -> list[str]:
    markers = [f"--override-ini=markers={name}" for name in ("gpu",)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "helpers.left_out"),
            *("-p", "no:cacheprovider", *markers, *options, str(folder)),
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("left out")]


@pytest.mark.parametrize("processes", [(), ("-p", "xdist", "-n", "2")], ids=["one", "two"])
def test_each_reason_is_one_line(tmp_path: Path, processes: tuple[str, ...]) -> None:
    (tmp_path / "test_some.py").write_text(SOME)
    (tmp_path / "test_page.py").write_text(
        'import pytest\npytest.skip("Chromium is not installed", allow_module_level=True)\n'
    )
    assert sorted(lines_of(tmp_path, "-m", "not gpu", *processes)) == [
        "left out: 1 test: a CUDA device is needed",
        "left out: 1 test: requirements/eval.lock is not installed (make judges)",
        "left out: 2 tests: flite is not installed (apt-get install flite)",
        "left out: a whole file: Chromium is not installed (apt-get install chromium)",
    ]


def test_nothing_is_said_where_nothing_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("def test_passes(): ...\n")
    assert lines_of(tmp_path) == []


def test_ci_installs_what_the_lines_name() -> None:
    """So that nothing is left out there for want of a package."""
    script = (TESTS.parent / ".ci" / "run").read_text()
    (packages,) = re.findall(r"^PACKAGES=\((.*)\)$", script, re.MULTILINE)
    for remedy in REMEDIES.values():
        if remedy.startswith("apt-get install "):
            assert remedy.split()[-1] in packages.split()
        else:
            assert remedy in script
