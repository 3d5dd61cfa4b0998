"""The wheel of `make wheel`, installed into a fresh environment and used there as a user would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers.engines import ENVIRONMENT
from helpers.wheel import build_wheel
from PIL import Image

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the wheel; the packages it requires are those of the environment of the tests.

    They come by a .pth file, in which .pth files of their own do not count: the editable install
    of this checkout is not among them.
    """
    folder = tmp_path_factory.mktemp("fresh")
    wheel = build_wheel(tmp_path_factory.mktemp("wheel"))
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    pip = "-m pip --disable-pip-version-check"
    install = "install -q --no-deps --no-index --no-compile"
    run(
        sys.executable, *pip.split(), "--python", folder / "bin" / "python", *install.split(), wheel
    )
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run(*command: str | Path, cwd: Path | None = None) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=variables | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_first_script_of_the_readme_runs(environment: Path, tmp_path: Path) -> None:
    """As it stands there, with the package and its checkpoint from the wheel."""
    (script,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (package,) = environment.glob("lib/python*/site-packages/vllm_dynin")
    (tmp_path / "vllm_dynin").mkdir()  # the checkpoint is named by a path in a checkout
    (tmp_path / "vllm_dynin" / "assets").symlink_to(package / "assets")
    (tmp_path / "first").mkdir()  # the script's own folder: the other must not be imported
    said = "    print('from', dynin.__file__)\n"
    (tmp_path / "first" / "script.py").write_text(script + said)
    printed = run(environment / "bin" / "python", "first/script.py", cwd=tmp_path)
    assert "one three seven" in printed
    assert f"from {package}" in printed
    with Image.open(tmp_path / "seven.png") as picture:
        assert picture.size == (64, 64)


def test_a_wheel_brings_its_command(environment: Path, tmp_path: Path) -> None:
    printed = run(environment / "bin" / "vllm-dynin", "stages", cwd=tmp_path)
    assert "stage2" in printed
    assert "usage: vllm-dynin serve" in run(environment / "bin" / "vllm-dynin", "serve", "--help")
