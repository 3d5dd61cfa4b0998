"""The wheel of `make wheel`, installed into a fresh environment and used there as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers.engines import ENVIRONMENT
from helpers.wheel import build_wheel

USE = """
from pathlib import Path
import vllm_dynin as dynin
from vllm import LLM

package = Path(dynin.__file__).parent
if __name__ == "__main__":
    llm = LLM(str(package / "assets" / "tiny-text"), dtype="float32", enforce_eager=True)
    (answer,) = dynin.generate(
        llm, [dynin.TextToText("Reverse these words: cat tree moon", max_tokens=16)]
    )
    print("package", package)
    print("answer", answer.text)
"""


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


def test_a_wheel_answers(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(USE)
    printed = run(environment / "bin" / "python", "use.py", cwd=tmp_path)
    said = dict(line.split(" ", 1) for line in printed.splitlines() if line.startswith(("p", "a")))
    assert Path(said["package"]).is_relative_to(environment)
    assert said["answer"] == "moon tree cat"


def test_a_wheel_brings_its_command(environment: Path, tmp_path: Path) -> None:
    printed = run(environment / "bin" / "vllm-dynin", "stages", cwd=tmp_path)
    assert "stage2" in printed
    assert "usage: vllm-dynin serve" in run(environment / "bin" / "vllm-dynin", "serve", "--help")
