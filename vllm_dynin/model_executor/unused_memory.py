"""Memory that vLLM takes by itself and these models have no use for.

Two patches of what is not public; each says when it can go.
"""

from __future__ import annotations

import importlib
import logging
from functools import wraps
from typing import Any

from vllm_dynin import sizing
from vllm_dynin.config import LLaDAConfig

logger = logging.getLogger(__name__)


def own_no_grammars() -> None:
    """Let the model runner that is being built make its worker of grammars without any buffers.

    vLLM zeroes a bitmask of `max_num_seqs` × draft tokens × vocabulary on every rank, whether a
    grammar can ever come or not; ours are refused at admission. Called just before the runner makes
    its worker, and for that one alone: the name is put back when it has been used.
    Remove when vLLM makes that buffer at the first grammar.
    """
    runner: Any = importlib.import_module("vllm.v1.worker.gpu.model_runner")
    original = runner.StructuredOutputsWorker

    def build(*args: Any, **kwargs: Any) -> _NoGrammars:
        runner.StructuredOutputsWorker = original
        return _NoGrammars()

    runner.StructuredOutputsWorker = build


class _NoGrammars:
    """What the runner reaches for where a request has a grammar."""

    def apply_grammar_bitmask(
        self, logits: Any, input_batch: Any, grammar_req_ids: list[str], grammar_bitmask: Any
    ) -> None:
        """Only vLLM's warm-up asks, for requests that sample nothing."""
        assert all(name.startswith("_") for name in grammar_req_ids), "grammars are refused"


def cap_kv_cache() -> None:
    """Let the KV cache of our engines hold what a step can read, and no more.

    vLLM gives it all the memory that is left, for requests that come back to it; exact decoding
    rewrites all it reads at every step. A size that the user set holds
    (`--kv-cache-memory-bytes`, `--num-gpu-blocks-override`, VLLM_CPU_KVCACHE_SPACE).
    Remove when vLLM has a setting for the most it should take.
    """
    core: Any = importlib.import_module("vllm.v1.engine.core")
    original = core.get_kv_cache_configs
    if getattr(original, "_dynin", False):
        return

    @wraps(original)
    def get_kv_cache_configs(
        vllm_config: Any, kv_cache_specs: Any, available_memory: list[int], *args: Any
    ) -> Any:
        cache = vllm_config.cache_config
        is_ours = isinstance(vllm_config.model_config.hf_config, LLaDAConfig)
        sized = cache.kv_cache_memory_bytes, cache.num_gpu_blocks_override
        if is_ours and sized == (None, None):
            scheduler = vllm_config.scheduler_config
            rows = scheduler.max_num_batched_tokens
            available_memory = [
                _capped(
                    specs,
                    memory,
                    rows,
                    scheduler.max_num_seqs,
                    vllm_config.model_config.max_model_len,
                )
                for specs, memory in zip(kv_cache_specs, available_memory, strict=True)
            ]
        return original(vllm_config, kv_cache_specs, available_memory, *args)

    get_kv_cache_configs._dynin = True  # type: ignore[attr-defined]
    core.get_kv_cache_configs = get_kv_cache_configs


def _capped(
    specs: dict[str, Any], memory: int, rows: int, max_num_seqs: int, max_model_len: int
) -> int:
    """Bytes for the KV cache of one worker, given its layers and what is free."""
    block_size = max(spec.block_size for spec in specs.values())
    blocks = sizing.exact_blocks(rows, max_num_seqs, block_size, max_model_len)
    wanted = blocks * sum(spec.page_size_bytes for spec in specs.values())
    if wanted < memory:
        logger.info(
            "KV cache: %d blocks of %d rows (%.2f GiB of the %.2f GiB that are free), because a "
            "step reads %d rows (max_num_batched_tokens) at most; --kv-cache-memory-bytes sets "
            "another size",
            blocks,
            block_size,
            wanted / 2**30,
            memory / 2**30,
            rows,
        )
    return min(memory, wanted)
