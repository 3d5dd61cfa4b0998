"""packaging/triton_cpu_interpreter: lists a backend named cpu and stands back for a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed (vLLM brings it)")

SOURCE = Path(__file__).parents[2] / "packaging" / "triton_cpu_interpreter"
# Whatever else this environment lists under the name `cpu` is hidden: only these folders count.
PROBE = """
import importlib.metadata as metadata
import sys
def only_ours(**params):
    listed = metadata.EntryPoints(
        e
        for distribution in metadata.distributions()
        for e in distribution.entry_points
        if e.name != "cpu" or str(distribution.locate_file("")).startswith(sys.argv[1])
    )
    return listed.select(**params)
metadata.entry_points = only_ours
from triton.backends import backends
cpu = backends["cpu"]
print(cpu.driver.__name__, cpu.compiler.__name__, cpu.driver.is_active())
"""
REAL = {
    "real_cpu/__init__.py": "",
    "real_cpu/driver.py": """
from triton.backends.driver import DriverBase
class RealDriver(DriverBase):
    @classmethod
    def is_active(cls): return True
    def map_python_to_cpp_type(self, ty): return ty
    def get_current_target(self): return None
    def get_active_torch_device(self): return None
    def get_benchmarker(self): return None
""",
    "real_cpu/compiler.py": """
from triton.backends.compiler import BaseBackend
class RealBackend(BaseBackend):
    @staticmethod
    def supports_target(target): return True
    def hash(self): return "real"
    def parse_options(self, options): return options
    def add_stages(self, stages, options, language): pass
    def load_dialects(self, context): pass
    def get_module_map(self): return {}
""",
}


def distribution(folder: Path, name: str, module: str) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[triton.backends]\ncpu = {module}\n")


def probe(*folders: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(folders[0].parent)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    folder = tmp_path / "ours"
    folder.mkdir()
    (folder / "triton_cpu_interpreter").symlink_to(SOURCE / "triton_cpu_interpreter")
    distribution(folder, "ours", "triton_cpu_interpreter")
    return folder


def test_alone_it_is_listed_and_never_active(ours: Path) -> None:
    assert probe(ours) == ["CPUInterpreterDriver", "CPUInterpreterBackend", "False"]


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_real_backend_wins(ours: Path, tmp_path: Path, ours_first: bool) -> None:
    """Triton takes the last entry of a name, so both orders of discovery are tried."""
    real = tmp_path / "real"
    for name, text in REAL.items():
        (real / name).parent.mkdir(parents=True, exist_ok=True)
        (real / name).write_text(text)
    distribution(real, "real", "real_cpu")
    folders = (ours, real) if ours_first else (real, ours)
    assert probe(*folders) == ["RealDriver", "RealBackend", "True"]
