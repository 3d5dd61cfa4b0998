"""Compile all kernels for sm_80, sm_90 and sm_100 without a GPU, and keep what comes of it in docs.

python packaging/kernels/compile.py            the tables of docs/kernels.md
python packaging/kernels/compile.py --install  the CUDA C++ beside its source: DYNIN_KERNELS=cuda

nvcc is the one on PATH or in CUDA_HOME; where there is none, it is installed from the package
index into $COMPAT/nvcc (default .compat/nvcc). Triton is that of this Python.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vllm_dynin.kernels.csrc.nvcc import ARCHITECTURES, FLAGS, LIBRARY, SOURCE, command, find  # noqa: E402

PAGE = ROOT / "docs" / "kernels.md"
BEGIN, END = "<!-- sizes: written by packaging/kernels/compile.py -->", "<!-- end of sizes -->"
# All of one release: a newer nvvm writes PTX that an older ptxas does not read.
PARTS = ("cuda-nvcc", "nvvm", "cuda-crt", "cuda-runtime", "cuda-cccl")
WHEELS = [f"nvidia-{part}==13.0.*" for part in PARTS]


def compiler() -> str:
    """Path of nvcc, installed first where it is missing."""
    if (found := find()) is not None:
        return found
    folder = ROOT / os.environ.get("COMPAT", ".compat") / "nvcc"
    if not (paths := list(folder.glob("nvidia/*/bin/nvcc"))):
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder)]
        subprocess.run([*pip, *WHEELS], check=True)
        paths = list(folder.glob("nvidia/*/bin/nvcc"))
    return str(paths[0])


def cuda_rows(nvcc: str) -> list[str]:
    """A line per architecture of the CUDA C++: registers, spills, size."""
    lines = []
    for architecture in ARCHITECTURES:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
            target = [f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v", "-o", cubin.name]
            done = subprocess.run(
                [nvcc, *FLAGS, *target, str(SOURCE)], capture_output=True, text=True, check=False
            )
            assert not done.returncode, done.stderr
            said = done.stderr + done.stdout
            registers = re.search(r"Used (\d+) registers", said)
            spilled = re.search(r"(\d+) bytes spill stores", said)
            assert registers is not None and spilled is not None, said
            size = Path(cubin.name).stat().st_size
        lines.append(
            f"| sm_{architecture} | `unmask.cu` | any window | {registers[1]} | {spilled[1]} "
            f"| 64 + 24 a slot | {size:,} |"
        )
    return lines


def triton_rows() -> list[str]:
    """A line per architecture, kernel and form of the Triton kernels."""
    script = Path(__file__).with_name("triton_sizes.py")
    done = subprocess.run(
        [sys.executable, str(script), *map(str, ARCHITECTURES)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [
        f"| sm_{row['sm']} | `{row['kernel']}` | {row['case']} | {row['registers']} "
        f"| {row['spilled']} | {row['shared']:,} | {row['cubin']:,} |"
        for row in map(json.loads, done.stdout.splitlines())
    ]


def main() -> None:
    """Compile, and write the tables or the library."""
    nvcc = compiler()
    if "--install" in sys.argv:
        output = SOURCE.with_name(LIBRARY)
        subprocess.run(command(nvcc, output), check=True)
        print(f"{output}: {output.stat().st_size:,} bytes")
        return
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    release = re.search(r"release ([\d.]+)", version.stdout)
    assert release is not None
    import triton

    table = "\n".join(
        [
            BEGIN,
            "",
            f"nvcc {release[1]}, Triton {triton.__version__}; registers a thread, bytes otherwise.",
            "",
            "| GPU | kernel | form | registers | spilled | shared | cubin |",
            "|---|---|---|---|---|---|---|",
            *cuda_rows(nvcc),
            *triton_rows(),
            "",
            END,
        ]
    )
    before, found, rest = PAGE.read_text().partition(BEGIN)
    assert found, f"{PAGE} has no place for the sizes"
    PAGE.write_text(before + table + rest.partition(END)[2])
    print(table)


if __name__ == "__main__":
    main()
