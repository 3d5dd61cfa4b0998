"""How the CUDA C++ is compiled; setup.py and packaging/kernels/compile.py read this file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

SOURCE = Path(__file__).with_name("unmask.cu")
LIBRARY = "libdynin_unmask.so"
ARCHITECTURES = (80, 90, 100)
# No fused multiply-adds: scores are rounded operation by operation, as the definition rounds them.
FLAGS = ("-O3", "-std=c++17", "-fmad=false", "-Xcompiler", "-fPIC", "-lineinfo")


def find() -> str | None:
    """Path of nvcc: on PATH or in CUDA_HOME; None where there is none."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def command(nvcc: str, output: Path) -> list[str]:
    """Command line for the shared library: code for every architecture, PTX of the newest."""
    newest = ARCHITECTURES[-1]
    targets = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in ARCHITECTURES]
    targets.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    libraries = f"-L{Path(nvcc).resolve().parents[1] / 'lib'}"  # where the wheels have them
    link = ["-shared", "-cudart=static", libraries, "-o", str(output)]
    return [nvcc, *FLAGS, *targets, *link, str(SOURCE)]
