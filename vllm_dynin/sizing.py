"""How much of a machine an engine takes: rows, blocks and bytes, by arithmetic alone.

The engine takes its defaults from here (`model_executor/engine_config.py`, `compat.py`), and
docs/sizing.md is a table of the same functions.
"""

from __future__ import annotations

from math import ceil, prod

from vllm_dynin import checkpoint
from vllm_dynin.config import LLaDAConfig

TYPICAL_ROWS = 768
"""Rows of an ordinary text request in a step: a short prompt and 512 slots."""

FEWEST_REQUESTS, MOST_REQUESTS = 16, 32
"""Bounds of the default of `max_num_seqs`."""

LOGIT_ELEMENTS = 1 << 26
"""Logits held at a time (128 MiB in bfloat16): 484 rows of the whole 138,752 columns."""


def default_requests(max_num_batched_tokens: int) -> int:
    """`max_num_seqs` where the user names none: twice the text requests one step can hold.

    vLLM's own default (up to 1,024) is for models that compute one row a request and step. Here a
    step holds whole requests, so more than that would wait inside the engine instead of in front
    of it, at buffers of its own for each.
    """
    twice = 2 * max_num_batched_tokens // TYPICAL_ROWS
    return min(max(twice, FEWEST_REQUESTS), MOST_REQUESTS)


def exact_blocks(max_num_batched_tokens: int, max_num_seqs: int, block_size: int) -> int:
    """KV blocks that exact mode can make use of.

    A step reads the KV of the rows it has just written, at most `max_num_batched_tokens`. Every
    request may leave one block partly used, and vLLM keeps one block empty.
    """
    return ceil(max_num_batched_tokens / block_size) + max_num_seqs + 1


def kv_row_bytes(config: LLaDAConfig, element_bytes: int, tensor_parallel: int = 1) -> int:
    """Bytes of one row of the KV cache on one rank: keys and values of every layer.

    Args:
        config: of the checkpoint.
        element_bytes: of the KV cache's dtype.
        tensor_parallel: ranks that share the heads.
    """
    heads = max(1, config.n_kv_heads // tensor_parallel)
    return 2 * config.n_layers * heads * config.head_dim * element_bytes


def weight_bytes(config: LLaDAConfig, element_bytes: int, tensor_parallel: int = 1) -> int:
    """Bytes of the model's weights on one rank; norms, which every rank holds whole, included."""
    shapes = checkpoint.expected_shapes(config, config.vocab_size).values()
    elements = sum(prod(s) / (1 if len(s) == 1 else tensor_parallel) for s in shapes)
    return ceil(elements) * element_bytes


def hidden_bytes(config: LLaDAConfig, num_rows: int, element_bytes: int, ranks: int = 1) -> int:
    """Bytes of the activations of one layer, the most that are alive at once in a forward.

    Counted: the residual stream and its normalised copy, queries, keys and values in float32 while
    they are rotated and in the model's dtype, and the gated MLP's two halves with their product.
    """
    wide = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim / ranks
    attention = wide * (element_bytes + 4 + 4)
    mlp = 3 * config.mlp_hidden_size / ranks * element_bytes
    return ceil(num_rows * (2 * config.d_model * element_bytes + max(attention, mlp)))


def logit_bytes(element_bytes: int) -> int:
    """Bytes of the logits the sampler holds: a product of the head and its guided combination."""
    return 2 * LOGIT_ELEMENTS * element_bytes


def canvas_bytes(config: LLaDAConfig, num_slots: int, element_bytes: int) -> int:
    """Bytes on the device of one running request's canvas.

    Ids and positions of its rows (int64), and the hidden states of a second stream that is kept.
    """
    return num_slots * (4 * 8 + config.d_model * element_bytes)
