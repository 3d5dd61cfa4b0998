"""packaging/make_venv.sh: each thing that a machine can lack is refused in one line."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Every command of the script but python: a PATH holding only these is a machine without Python.
COMMANDS = [
    *("bash", "cat", "cut", "dirname", "find", "grep", "mktemp", "cp", "rm"),
    *("sha256sum", "sort", "tail", "uname", "xargs"),
]

pytestmark = pytest.mark.skipif(
    not Path("/proc/cpuinfo").exists() or shutil.which("bash") is None,
    reason="needs Linux and bash",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that the script reads, so that no test touches the real environment."""
    copy = tmp_path / "checkout"
    for folder in ("packaging", "requirements"):
        shutil.copytree(
            ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("build", "*.egg-info")
        )
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in COMMANDS:
        found = shutil.which(name)
        if found:
            (folder / name).symlink_to(found)
    return folder


def shim(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run(
    checkout: Path, bin_dir: Path, command: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the script, or `command` with the script's functions defined."""
    script = checkout / "packaging" / "make_venv.sh"
    call = ["bash", str(script)] if not command else ["bash", "-c", f"source {script}; {command}"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "VIRTUAL"))}
    return subprocess.run(
        call,
        env=clean | {"PATH": str(bin_dir), "PIP_CONFIG_FILE": os.devnull} | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def the_error(result: subprocess.CompletedProcess[str]) -> str:
    """The single error line; progress lines may precede it."""
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Installing into")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_no_python_at_all(checkout: Path, bin_dir: Path) -> None:
    message = the_error(run(checkout, bin_dir))
    assert "no Python 3.11 found (tried: python3.11 python3 python)" in message
    assert "make PYTHON=" in message
    assert not (checkout / ".venv").exists()


def test_a_version_managers_shim_is_not_a_python(checkout: Path, bin_dir: Path) -> None:
    shim(bin_dir, "python3.11", "echo 'python3.11: command not found' >&2; exit 127")
    assert "no Python 3.11 found" in the_error(run(checkout, bin_dir))


def test_another_python_version_is_refused(checkout: Path, bin_dir: Path) -> None:
    # It answers the version check as any Python but 3.11 does.
    shim(bin_dir, "python3.12", "exit 1")
    message = the_error(run(checkout, bin_dir, PYTHON="python3.12"))
    assert "tried: python3.12" in message


@pytest.mark.parametrize("system, machine", [("Linux", "aarch64"), ("Darwin", "x86_64")])
def test_other_machines_are_refused(
    checkout: Path, bin_dir: Path, system: str, machine: str
) -> None:
    shim(bin_dir, "uname", f'[ "$1" = -s ] && echo {system} || echo {machine}')
    message = the_error(run(checkout, bin_dir, PYTHON=sys.executable))
    assert f"this is {system} on {machine}" in message
    assert "Linux on x86_64 only" in message


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the script wants Python 3.11")
def test_python_without_venv(checkout: Path, bin_dir: Path) -> None:
    shim(bin_dir, "python3.11", f'[ "$1" = -m ] && exit 1 || exec {sys.executable} "$@"')
    assert "python3.11-venv" in the_error(run(checkout, bin_dir))


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the script wants Python 3.11")
def test_unreachable_index(checkout: Path, bin_dir: Path) -> None:
    with socket.socket() as closed:  # bound and never listening: connecting is refused at once
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/simple"
        base = Path(sys.base_prefix, "bin", "python3.11")
        result = run(checkout, bin_dir, PYTHON=str(base), PIP_INDEX_URL=url)
    message = the_error(result)
    assert "is a package index reachable? Set PIP_INDEX_URL" in message
    log = (checkout / ".venv" / "install.log").read_text()
    assert "Connection refused" in log
    assert not (checkout / ".venv" / ".stamp").exists()


@pytest.mark.parametrize("version, needs_libraries", [("2.13.0", True), ("2.13.0+cpu", False)])
def test_build_of_torch(checkout: Path, bin_dir: Path, version: str, needs_libraries: bool) -> None:
    """Where an index has only the CUDA build, its libraries come too, and a line says so."""
    wheels = checkout / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        info = f"torch-{version}.dist-info"
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    result = run(checkout, bin_dir, "torch_libraries", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))
    log = checkout / ".venv" / "install.log"
    assert log.read_text() == ""  # pip had nothing to complain about: the version itself decided
    assert result.returncode == 0
    if needs_libraries:
        assert result.stdout == "-r requirements/torch-cuda.lock\n"
        (note,) = result.stderr.splitlines()
        assert note.startswith("note: the index offers torch 2.13.0 but not its CPU build")
    else:
        assert (result.stdout, result.stderr) == ("", "")


def test_up_to_date_until_an_input_changes(checkout: Path, bin_dir: Path) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    stamp = run(checkout, bin_dir, "inputs | sha256sum | cut -d' ' -f1").stdout
    (checkout / ".venv" / ".stamp").write_text(stamp)
    # A machine that would be refused: silence means that nothing was attempted.
    shim(bin_dir, "uname", "echo elsewhere")
    result = run(checkout, bin_dir)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

    with open(checkout / "requirements" / "cpu.lock", "a") as lock:
        lock.write("one-more==1.0\n")
    assert "this is elsewhere" in the_error(run(checkout, bin_dir))
