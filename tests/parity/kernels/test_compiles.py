"""Every kernel compiles for three generations of GPUs on a machine without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_dynin.kernels.choice import Implementation, chosen
from vllm_dynin.kernels.csrc import nvcc
from vllm_dynin.kernels.unmask_cuda import load

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_in_triton():
    done = subprocess.run(
        [sys.executable, ROOT / "packaging/kernels/triton_sizes.py", "80", "90", "100"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["sm"] for row in rows} == {80, 90, 100}
    names = {"partials_kernel", "merge_kernel", "scatter_kernel", "unmask_kernel", "rotary_kernel"}
    assert {row["kernel"] for row in rows} == names
    assert all(row["cubin"] for row in rows)
    # Row statistics are bound by memory: registers that spill would be traffic of their own.
    assert not any(row["spilled"] for row in rows if row["kernel"] != "unmask_kernel")


@pytest.mark.slow
@pytest.mark.skipif(nvcc.find() is None, reason="no nvcc on this machine")
def test_in_cuda(tmp_path):
    path = tmp_path / nvcc.LIBRARY
    subprocess.run(nvcc.command(nvcc.find(), path), check=True, timeout=600)
    assert load(path).dynin_unmask is not None
    for architecture in nvcc.ARCHITECTURES:
        assert f"sm_{architecture}".encode() in path.read_bytes()


def test_a_library_that_was_not_built_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"compile\.py --install"):
        load(tmp_path / nvcc.LIBRARY)
    (tmp_path / nvcc.LIBRARY).write_bytes(b"not a library")
    with pytest.raises(RuntimeError, match="does not load"):
        load(tmp_path / nvcc.LIBRARY)


def test_the_form_is_chosen(monkeypatch):
    import torch

    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("DYNIN_KERNELS", raising=False)
    assert (chosen(cpu), chosen(gpu)) == (Implementation.NUMBA, Implementation.TRITON)
    monkeypatch.setenv("DYNIN_KERNELS", "torch")
    assert (chosen(cpu), chosen(gpu)) == (Implementation.TORCH, Implementation.TORCH)
    monkeypatch.setenv("DYNIN_KERNELS", "cuda")
    assert chosen(gpu) is Implementation.CUDA
    with pytest.raises(ValueError, match="DYNIN_KERNELS=cuda needs a CUDA device"):
        chosen(cpu)
    monkeypatch.setenv("DYNIN_KERNELS", "triton")
    with pytest.raises(ValueError, match="DYNIN_KERNELS=triton needs a CUDA device"):
        chosen(cpu)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert chosen(cpu) is Implementation.TRITON
    monkeypatch.setenv("DYNIN_KERNELS", "fast")
    with pytest.raises(ValueError, match="set it to torch, triton or cuda"):
        chosen(cpu)
