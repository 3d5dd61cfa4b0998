"""How much of a machine an engine takes: rows, blocks and bytes, by arithmetic alone.

The engine takes its defaults and what it sets aside from here (`model_executor/`), and
docs/sizing.md is a table of the same functions.
"""

from __future__ import annotations

from math import ceil, prod

from vllm_dynin import checkpoint
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.sampling.tiles import TILE_ELEMENTS

TYPICAL_ROWS = 768
"""Rows of an ordinary text request in a step: a prompt of 256 and 512 slots."""

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


def exact_blocks(
    max_num_batched_tokens: int, max_num_seqs: int, block_size: int, max_model_len: int
) -> int:
    """KV blocks that exact mode can make use of.

    A step reads the KV of the rows it has just written, so rows beyond those of one step are of no
    use; nor are more than all requests have at their longest.

    Args:
        max_num_batched_tokens: rows of the largest step.
        max_num_seqs: requests that run at once.
        block_size: rows of a KV block.
        max_model_len: rows of the longest request.
    """
    longest = ceil(max_model_len / block_size)
    step = ceil(max_num_batched_tokens / block_size) + max_num_seqs  # each may leave one part full
    return min(max_num_seqs * longest, max(longest, step)) + 1  # vLLM keeps one block empty


def kv_row_bytes(config: LLaDAConfig, element_bytes: int, ranks: int = 1) -> int:
    """Bytes of one row of the KV cache on one rank: keys and values of every layer.

    Args:
        config: of the checkpoint.
        element_bytes: of the KV cache's dtype.
        ranks: of tensor parallelism, which share the heads.
    """
    heads = max(1, config.n_kv_heads // ranks)
    return 2 * config.n_layers * heads * config.head_dim * element_bytes


def weight_bytes(
    config: LLaDAConfig, element_bytes: int, ranks: int = 1, *, block_bytes: int | None = None
) -> int:
    """Bytes of the model's weights on one rank.

    Args:
        config: of the checkpoint.
        element_bytes: of the token table, the head and the norms, which every rank holds whole.
        ranks: of tensor parallelism.
        block_bytes: of the matrices of the blocks, where they are quantised.
    """
    total = 0.0
    for name, shape in checkpoint.expected_shapes(config, config.vocab_size).items():
        is_matrix = len(shape) == 2
        size = element_bytes
        if is_matrix and name not in (checkpoint.EMBEDDING, checkpoint.HEAD):
            size = element_bytes if block_bytes is None else block_bytes
        total += prod(shape) * size / (ranks if is_matrix else 1)
    return ceil(total)


def forward_bytes(config: LLaDAConfig, num_rows: int, element_bytes: int, ranks: int = 1) -> int:
    """Bytes of the activations of one layer, the most that are alive at once in a forward.

    The residual stream and its normalised copy, and the larger of: queries, keys and values in the
    model's dtype, in float32 and rotated; the two halves of the gated MLP and their product.
    """
    wide = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim / ranks
    attention = wide * (element_bytes + 4 + 4)
    mlp = 3 * config.mlp_hidden_size / ranks * element_bytes
    return ceil(num_rows * (2 * config.d_model * element_bytes + max(attention, mlp)))


def sampler_bytes(element_bytes: int) -> int:
    """Bytes of the logits of one product with the head, and of the tile that is looked at.

    A tile is held guided, and in float64: as noise, as scores and for the softmax.
    """
    return LOGIT_ELEMENTS * element_bytes + TILE_ELEMENTS * (2 * element_bytes + 4 * 8)


def canvas_bytes(config: LLaDAConfig, num_rows: int, element_bytes: int) -> int:
    """Bytes on the device of the canvases whose rows fill a step of `num_rows` rows.

    Ids and positions (int64, each twice), and hidden states that are kept of second streams: those
    of at most half of the rows.
    """
    return num_rows * 4 * 8 + num_rows // 2 * config.d_model * element_bytes


def engine_bytes(
    config: LLaDAConfig,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    element_bytes: int,
    ranks: int = 1,
    block_size: int = 16,
    max_model_len: int = 4096,
) -> int:
    """Bytes of one rank beside codecs and what CUDA and vLLM take themselves."""
    rows = max_num_batched_tokens
    kv_rows = exact_blocks(rows, max_num_seqs, block_size, max_model_len) * block_size
    most_at_once = max(
        forward_bytes(config, rows, element_bytes, ranks),
        sampler_bytes(element_bytes) + rows * config.d_model * element_bytes,
    )
    return (
        weight_bytes(config, element_bytes, ranks)
        + kv_rows * kv_row_bytes(config, element_bytes, ranks)
        + canvas_bytes(config, rows, element_bytes)
        + most_at_once
    )
