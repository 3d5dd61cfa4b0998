"""Starting the real engine for a demonstration: quietly, and in this process."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_dynin.checkpoint import load_config
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.kv_memory import kv_cache_bytes

if TYPE_CHECKING:
    from vllm import LLM

_MAX_NUM_SEQS, _MAX_ROWS = 1_024, 16_384  # vLLM's largest defaults

# In this process, because two engines run one after the other and each would start another one.
# ERROR, because vLLM warns about each thing the CPU platform lacks.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


def prepare() -> None:
    """Set what vLLM reads when it is imported; what the user has set stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _stated_kv(config: LLaDAConfig, options: Mapping[str, Any], free: int) -> dict[str, int]:
    """KV memory on a GPU from what is asked there; nothing, and so vLLM's share, where it is much.

    vLLM's default takes 0.92 of the device, whatever the model needs.
    """
    if {"kv_cache_memory_bytes", "gpu_memory_utilization"} & options.keys():
        return {}
    rows = options.get("max_model_len") or config.max_sequence_length
    size = kv_cache_bytes(
        config,
        num_requests=options.get("max_num_seqs") or _MAX_NUM_SEQS,
        request_rows=rows,
        step_rows=max(rows, options.get("max_num_batched_tokens") or _MAX_ROWS),
        element_bytes=4,
        num_ranks=options.get("tensor_parallel_size") or 1,
    )
    return {"kv_cache_memory_bytes": size} if size < free // 8 else {}


@contextmanager
def engine(checkpoint: Path, **options: Any) -> Iterator[tuple[LLM, float]]:
    """Start vLLM on a checkpoint, and stop it at the end.

    Args:
        checkpoint: its folder.
        options: of `vllm.LLM`.

    Yields:
        The engine, and the seconds it took to start.
    """
    import torch
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        options = {**_stated_kv(load_config(checkpoint), options, free), **options}
    else:
        # Small models: exact arithmetic. KV memory is stated by model_executor/cpu_memory.py.
        options = {"dtype": "float32", **options}
    started = time.monotonic()
    llm = LLM(str(checkpoint), enforce_eager=True, use_tqdm_on_load=False, **options)
    try:
        yield llm, time.monotonic() - started
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()
