"""Starting the real engine for a demonstration: quietly, and in this process."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import LLM

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

    if not torch.cuda.is_available():
        # The models of the demo are tiny: little memory, and exact arithmetic.
        options = {"dtype": "float32", "gpu_memory_utilization": 0.1, **options}
    started = time.monotonic()
    llm = LLM(str(checkpoint), enforce_eager=True, use_tqdm_on_load=False, **options)
    try:
        yield llm, time.monotonic() - started
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()
