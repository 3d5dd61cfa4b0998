"""The output head over part of the vocabulary, tensor-parallel."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from vllm.distributed import (
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
)

from vllm_dynin.kernels.padded_logits import padded_logits
from vllm_dynin.sampling.columns import Columns


class RestrictedHead:
    """`hidden @ weightᵀ` for chosen columns only.

    Each rank multiplies the part of the columns it holds and leaves zeros elsewhere, so the sum
    over the ranks is exactly the row of logits, on every rank.

    Args:
        lm_head: the vocabulary-parallel head.
    """

    def __init__(self, lm_head: ParallelLMHead) -> None:
        self._lm_head = lm_head
        self._weight = cast(Tensor, lm_head.weight)
        self._num_ranks = get_tensor_model_parallel_world_size()

    def __call__(self, hidden_RD: Tensor, columns: Columns) -> Tensor:
        """Logits [R, K] in the model's dtype, in the order of `columns`; excluded ids included."""
        if not len(hidden_RD):  # vLLM's bf16 CPU matrix product divides by the number of rows
            return hidden_RD.new_zeros(0, columns.width)
        if not isinstance(self._lm_head.quant_method, UnquantizedEmbeddingMethod):
            return self._quantized(hidden_RD, columns)
        if self._num_ranks == 1:
            if hidden_RD.is_cuda:
                return padded_logits(hidden_RD, self._weight, columns.ranges)
            parts = [
                F.linear(hidden_RD, self._weight[first:stop]) for first, stop in columns.ranges
            ]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return self._sharded(hidden_RD, columns)

    def _sharded(self, hidden_RD: Tensor, columns: Columns) -> Tensor:
        shard = self._lm_head.shard_indices
        low, high = shard.org_vocab_start_index, shard.org_vocab_end_index
        logits_RK = hidden_RD.new_zeros(len(hidden_RD), columns.width)
        column = 0
        for first, stop in columns.ranges:
            begin, end = max(first, low), min(stop, high)
            if begin < end:
                at = column + begin - first
                logits_RK[:, at : at + end - begin] = F.linear(
                    hidden_RD, self._weight[begin - low : end - low]
                )
            column += stop - first
        return tensor_model_parallel_all_reduce(logits_RK)

    def _quantized(self, hidden_RD: Tensor, columns: Columns) -> Tensor:
        """A quantised head is one packed matrix: multiply by all of it and keep the columns."""
        logits = self._lm_head.quant_method.apply(self._lm_head, hidden_RD)
        shard = self._lm_head.shard_indices
        if self._num_ranks > 1:
            whole = logits.new_zeros(len(hidden_RD), self._lm_head.org_vocab_size)
            low, high = shard.org_vocab_start_index, shard.org_vocab_end_index
            whole[:, low:high] = logits[:, : high - low]
            logits = tensor_model_parallel_all_reduce(whole)
        return logits[:, columns.ids(logits.device)]
