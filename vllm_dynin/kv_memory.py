"""KV memory from the size of what is served, and not from a share of the machine."""

from __future__ import annotations

from vllm_dynin import sizing
from vllm_dynin.config import LLaDAConfig

BLOCK = 128
"""Rows of the largest KV block that vLLM takes by itself (on CPUs); smaller ones need less."""
GIB = 1 << 30
PROCESSES = 2 * GIB
"""What vLLM's processes take on a CPU beside weights and KV: three of them, with torch in each."""


def kv_cache_bytes(
    config: LLaDAConfig,
    *,
    num_requests: int,
    request_rows: int,
    step_rows: int,
    element_bytes: int,
    block: int = BLOCK,
    num_ranks: int = 1,
) -> int:
    """KV memory that an engine in exact mode can make use of, in bytes on one rank.

    A step reads the KV of the rows it has just written, so rows beyond those of one step are of no
    use; nor are more than all requests have at their longest.

    Args:
        config: of the checkpoint.
        num_requests: that run at once (`max_num_seqs`).
        request_rows: of the longest request (`max_model_len`).
        step_rows: of the largest step (`max_num_batched_tokens`).
        element_bytes: of the KV cache's dtype.
        block: rows of a KV block.
        num_ranks: that share the heads.
    """
    blocks = sizing.exact_blocks(step_rows, num_requests, block, request_rows)
    return blocks * block * sizing.kv_row_bytes(config, element_bytes, num_ranks)


def fitting(wanted: int, least: int, *, available: int, weights: int, num_ranks: int = 1) -> int:
    """As much of the wanted KV memory as a machine has room for.

    Half of what is free once the processes and the weights are in it: media in flight, logits and
    whatever else runs there need room too. Never less than one request takes.

    Args:
        wanted: bytes on one rank.
        least: the same for one request.
        available: bytes free on the machine before anything is loaded.
        weights: bytes of the weights over all ranks.
        num_ranks: that share the machine.
    """
    room = (available - PROCESSES - weights) // 2 // num_ranks
    return max(least, min(wanted, room))
