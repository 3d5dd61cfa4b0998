"""Real vLLM engines for the tests: tiny, single-threaded, and shut down for good."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import vllm.envs
from vllm import LLM

# `nobind`: the engine shares the machine with the reference model and with other engines.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
DEFAULTS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 4,
    "block_size": 32,
    "enforce_eager": True,
    "num_gpu_blocks_override": 80,  # four of the longest requests fit: nobody is preempted
    "kv_cache_memory_bytes": 1 << 26,
    "disable_log_stats": False,
}

# Engines of this process share torch.distributed, which ends when any of them is shut down or
# collected. They are tiny, so all of them stay until the process ends.
_KEPT: list[LLM] = []


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables for a while; vLLM's cache of them is dropped before and after."""
    values = ENVIRONMENT | values
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    vllm.envs.disable_envs_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        vllm.envs.disable_envs_cache()


@contextmanager
def start_llm(folder: Path, *, in_process: bool = True, **options: Any) -> Iterator[LLM]:
    """An `LLM` on a checkpoint.

    Its core runs in this process, which starts three times faster and lets tests look inside;
    or, not `in_process`, in a process of its own with a worker process a rank.
    """
    with environment(VLLM_ENABLE_V1_MULTIPROCESSING="0" if in_process else "1"):
        llm = LLM(str(folder), **(DEFAULTS | options))
    if in_process:
        _KEPT.append(llm)
    try:
        yield llm
    finally:
        if not in_process:
            llm.llm_engine.engine_core.shutdown()


def metric(llm: LLM, name: str) -> float:
    """Sum of a counter or gauge over its labels."""
    found = [metric for metric in llm.get_metrics() if metric.name == name]
    assert found, f"vLLM reports no metric {name}"
    return sum(metric.value for metric in found)
