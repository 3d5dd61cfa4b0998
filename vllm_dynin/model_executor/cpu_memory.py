"""KV memory on a CPU, where vLLM's own default fails on most machines.

By default vLLM asks for 0.92 of the memory node: more than is free wherever anything else runs, and
on a small node less than the process has taken already. Remove when vLLM's CPU worker sizes its KV
cache by what is free (0.33 does not).
"""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import TYPE_CHECKING, cast

from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info
from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype

from vllm_dynin.config import LLaDAConfig
from vllm_dynin.kv_memory import GIB, PROCESSES, fitting, kv_cache_bytes
from vllm_dynin.sizing import weight_bytes

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig

logger = logging.getLogger(__name__)

_SPACE = "VLLM_CPU_KVCACHE_SPACE"
_UNITS = ((GIB, "GiB"), (1 << 20, "MiB"))


def settle_kv_memory(vllm_config: VllmConfig) -> None:
    """State `kv_cache_memory_bytes` where the user has not said how much, and say so in the log.

    What was said stays as it is; where it cannot work, one line says what to set.
    """
    cache, model = vllm_config.cache_config, vllm_config.model_config
    scheduler, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
    if os.environ.get(_SPACE):
        return  # vLLM puts it in the place of the option later
    config = cast(LLaDAConfig, model.hf_config)
    ranks = parallel.tensor_parallel_size
    size = partial(
        kv_cache_bytes,
        config,
        request_rows=model.max_model_len,
        element_bytes=kv_cache_dtype_str_to_dtype(cache.cache_dtype, model).itemsize,
        num_ranks=ranks,
    )
    least = size(num_requests=1, step_rows=model.max_model_len)
    if cache.kv_cache_memory_bytes is not None:
        if cache.kv_cache_memory_bytes < least and cache.num_gpu_blocks_override is None:
            logger.warning(
                "--kv-cache-memory-bytes %d may be too little: one request of %d rows takes %d; "
                "set that much or more, leave the option out, or lower --max-model-len",
                cache.kv_cache_memory_bytes,
                model.max_model_len,
                least,
            )
        return
    node = get_memory_node_info(get_allowed_cpu_list()[0].numa_node)
    weights = weight_bytes(config, cast("torch.dtype", model.dtype).itemsize)
    wanted = size(
        num_requests=scheduler.max_num_seqs,
        step_rows=max(scheduler.max_num_batched_tokens, model.max_model_len),
    )
    stated = fitting(
        wanted, least, available=node.available_memory, weights=weights, num_ranks=ranks
    )
    share = cache.gpu_memory_utilization
    if share != type(cache).gpu_memory_utilization:
        asked = int(node.total_memory * share)
        if asked > node.available_memory or asked < weights // ranks + least + PROCESSES // 2:
            logger.warning(
                "--gpu-memory-utilization %g, on a CPU %s of this machine's memory, may not work: "
                "%s is free, and weights, processes and one request take about %s; leave it out, "
                "or set --kv-cache-memory-bytes %d in its place",
                share,
                _told(asked),
                _told(node.available_memory),
                _told(weights + least + PROCESSES),
                stated,
            )
        return
    cache.kv_cache_memory_bytes = stated
    logger.info(
        "KV cache: %s, from --max-num-seqs %d and --max-model-len %d (vLLM's default on a CPU, "
        "%g of the machine's memory, is more than exact decoding can use); "
        "--kv-cache-memory-bytes sets another size",
        _told(stated),
        scheduler.max_num_seqs,
        model.max_model_len,
        share,
    )
    if node.available_memory < weights + least + PROCESSES:
        logger.warning(
            "memory is short: %s is free on this machine, and weights (%s), processes (%s) and one "
            "request of %d rows (%s) may take more; use a smaller checkpoint or dtype, lower "
            "--max-model-len, or free memory",
            _told(node.available_memory),
            _told(weights),
            _told(PROCESSES),
            model.max_model_len,
            _told(least),
        )


def _told(num_bytes: int) -> str:
    unit, name = next((one for one in _UNITS if num_bytes >= one[0]), _UNITS[-1])
    return f"{num_bytes / unit:.3g} {name}"
