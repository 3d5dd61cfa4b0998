"""KV memory is stated from what is served, so that engines start on machines of any size."""

from __future__ import annotations

import builtins
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from helpers.engines import DEFAULTS, ENVIRONMENT, counted_preemptions, environment, start_llm
from helpers.server import serve
from vllm import EngineArgs, SamplingParams
from vllm.config import VllmConfig
from vllm.utils.cpu_resource_utils import get_memory_node_info

import vllm_dynin
from vllm_dynin.kv_memory import GIB, kv_cache_bytes
from vllm_dynin.model_executor import cpu_memory

ASSETS = Path(vllm_dynin.__file__).parent / "assets"
NODE = Path(__file__).parents[1] / "helpers" / "memory_node"
FREE = {name: value for name, value in DEFAULTS.items() if not name.endswith(("bytes", "override"))}

pytestmark = pytest.mark.skipif(
    not Path("/sys/devices/system/node/node0/meminfo").exists(),
    reason="this kernel has no memory nodes to make look like others",
)


def node_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("memory_node", NODE / "sitecustomize.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def looks_like(monkeypatch):
    """Call it with a size in GiB."""
    module = node_module()

    def set_size(gib: float) -> None:
        monkeypatch.setenv(module.VARIABLE, str(gib))
        monkeypatch.setattr(builtins, "open", module.faked)
        assert get_memory_node_info(0).total_memory <= gib * GIB

    return set_size


def child(gib: float) -> dict[str, str]:
    path = os.pathsep.join([str(NODE), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    return {"PYTHONPATH": path, "LOOKS_LIKE_GIB": str(gib)}


def configure(folder: Path, **options) -> VllmConfig:
    with environment(VLLM_ENABLE_V1_MULTIPROCESSING="0"):
        return EngineArgs(model=str(folder), **(FREE | options)).create_engine_config()


@pytest.mark.parametrize("gib", [4, 8, 64])
def test_an_engine_starts_on_a_node_of_any_size(looks_like, checkpoint_folder, gib) -> None:
    """The size of the node changes nothing for a model that is small beside it."""
    looks_like(gib)
    with start_llm(
        checkpoint_folder, kv_cache_memory_bytes=None, num_gpu_blocks_override=None
    ) as llm:
        params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
        prompts = [{"prompt_token_ids": [9] * 400}] * 4  # as long as they may be, all at once
        long = SamplingParams(max_tokens=112, temperature=0, ignore_eos=True)
        with counted_preemptions(llm) as preempted:
            outputs = llm.generate(prompts, long, use_tqdm=False)
        assert preempted == []
        assert [len(output.outputs[0].token_ids) for output in outputs] == [112] * 4
        (short,) = llm.generate(prompts[:1], params, use_tqdm=False)
        assert len(short.outputs[0].token_ids) == 8
        stated = llm.llm_engine.vllm_config.cache_config.kv_cache_memory_bytes
        assert stated is not None and stated < 64 << 20


def test_a_demo_starts_on_a_small_node(tmp_path) -> None:
    command = [sys.executable, "-m", "vllm_dynin.entrypoints.cli", "demo", "--only", "text"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "report.html")],
        env=os.environ | ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "ERROR"} | child(4),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "18 of 18 right" in done.stdout or "17 of 18 right" in done.stdout


def test_a_plain_server_starts_and_says_what_it_took(tmp_path) -> None:
    """`vllm serve CHECKPOINT`, as `vllm-dynin serve` runs it too."""
    log = tmp_path / "log"
    variables = child(4) | {"VLLM_LOGGING_LEVEL": "INFO"}
    with serve(ASSETS / "dynin-tiny", log, sizes=(), **variables) as server:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Count: one"}]}
        with server.client() as client:
            assert client.post("/v1/chat/completions", json=body).status_code == 200
    (line,) = [line for line in log.read_text().splitlines() if "KV cache: " in line]
    assert "--kv-cache-memory-bytes sets another size" in line


def test_the_size_is_that_of_what_is_served(looks_like, checkpoint_folder) -> None:
    looks_like(64)
    few = configure(checkpoint_folder, max_num_seqs=1).cache_config.kv_cache_memory_bytes
    many = configure(checkpoint_folder, max_num_seqs=8).cache_config.kv_cache_memory_bytes
    usual = configure(checkpoint_folder).cache_config.kv_cache_memory_bytes
    short = configure(checkpoint_folder, max_model_len=128).cache_config.kv_cache_memory_bytes
    half = configure(checkpoint_folder, dtype="bfloat16").cache_config.kv_cache_memory_bytes
    assert few < usual < many
    assert short < usual == 2 * half


def test_much_on_a_small_node_is_less_but_enough_for_a_request(
    looks_like, checkpoint_folder
) -> None:
    # 512 KiB a row, as the 8B model in bfloat16: 32 GiB for all requests, 0.3 GiB for one
    deep = {"hf_overrides": {"n_layers": 1_000}, "max_num_seqs": 120}
    deep |= {"max_num_batched_tokens": 1 << 16}
    sizes = []
    for gib in (1, 4, 8, 64):  # on the first not even the processes fit
        looks_like(gib)
        sizes.append(configure(checkpoint_folder, **deep).cache_config.kv_cache_memory_bytes)
    assert GIB // 4 < sizes[0] < sizes[1] < GIB < sizes[2] < 4 * GIB < sizes[3] < 32 * GIB


def test_what_the_user_says_holds(looks_like, checkpoint_folder, monkeypatch) -> None:
    looks_like(8)
    cache = configure(checkpoint_folder, kv_cache_memory_bytes=1 << 25).cache_config
    assert cache.kv_cache_memory_bytes == 1 << 25
    cache = configure(checkpoint_folder, gpu_memory_utilization=0.5).cache_config
    assert cache.kv_cache_memory_bytes is None
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert configure(checkpoint_folder).cache_config.kv_cache_memory_bytes == GIB


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpu_memory_utilization": 0.1}, "--kv-cache-memory-bytes"),  # less than a process takes
        ({"gpu_memory_utilization": 0.95}, "--kv-cache-memory-bytes"),  # more than is free
        ({"kv_cache_memory_bytes": 1 << 10}, "set that much or more"),
    ],
)
def test_a_wish_that_cannot_work_is_told(
    looks_like, checkpoint_folder, monkeypatch, options, words
):
    """At the logger itself: other tests of this process set up logging in their own ways."""
    said = []
    monkeypatch.setattr(cpu_memory.logger, "warning", lambda text, *a: said.append(text % a))
    looks_like(9.46)
    configure(checkpoint_folder, **options)
    (line,) = said
    assert words in line and "\n" not in line


def test_the_arithmetic() -> None:
    from vllm_dynin.config import LLaDAConfig

    published = LLaDAConfig(n_kv_heads=32)  # 8B: 512 KiB a row in bfloat16
    size = kv_cache_bytes(
        published, num_requests=32, request_rows=4096, step_rows=8192, element_bytes=2
    )
    assert size == (64 + 32 + 1) * 128 * (512 << 10)
    alone = kv_cache_bytes(
        published, num_requests=1, request_rows=4096, step_rows=8192, element_bytes=2, num_ranks=4
    )
    assert alone == (32 + 1) * 128 * (128 << 10)
