"""Metadata is in pyproject.toml; this file is where the optional CUDA C++ is built.

Where nvcc is found, an installation brings csrc/unmask.cu compiled; without nvcc, in editable
installs and with DYNIN_BUILD_CUDA=0 it does not, and all but DYNIN_KERNELS=cuda works the same.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

CSRC = Path(__file__).parent / "vllm_dynin" / "kernels" / "csrc"
spec = importlib.util.spec_from_file_location("nvcc", CSRC / "nvcc.py")
assert spec is not None and spec.loader is not None
nvcc = importlib.util.module_from_spec(spec)
spec.loader.exec_module(nvcc)
COMPILER = None if os.environ.get("DYNIN_BUILD_CUDA") == "0" else nvcc.find()


class BuildWithCuda(build_py):
    """Copies the package, and puts the compiled library beside its source."""

    def run(self) -> None:
        """Copy and compile."""
        super().run()
        if COMPILER is None or self.editable_mode:
            return
        output = Path(self.build_lib) / "vllm_dynin" / "kernels" / "csrc" / nvcc.LIBRARY
        try:
            subprocess.run(nvcc.command(COMPILER, output), check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"{COMPILER} could not compile {nvcc.SOURCE}; DYNIN_BUILD_CUDA=0 leaves it out"
            ) from error


class WheelWithCuda(bdist_wheel):
    """A wheel with a library in it is for this platform, and for any Python."""

    def finalize_options(self) -> None:
        """Say whether there is a library."""
        super().finalize_options()
        self.root_is_pure = COMPILER is None

    def get_tag(self) -> tuple[str, str, str]:
        """Python, ABI and platform."""
        _, _, platform = super().get_tag()
        return "py3", "none", "any" if COMPILER is None else platform


setup(cmdclass={"build_py": BuildWithCuda, "bdist_wheel": WheelWithCuda})
