"""Log-probabilities of committed tokens, kept from the step that committed them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowLogprobs:
    """Log-probabilities of R rows: column 0 is the proposal, the others the k most likely.

    Args:
        ids: int64 [R, 1 + k] token ids.
        logprobs: float32 [R, 1 + k], natural logarithm.
        rank: int64 [R], 1 where the proposal is the most likely token.
    """

    ids: Tensor
    logprobs: Tensor
    rank: Tensor

    @classmethod
    def empty(cls, num_rows: int, num_top: int, device: torch.device) -> RowLogprobs:
        """Storage for `num_rows` tokens with `num_top` alternatives each."""
        shape = (num_rows, 1 + num_top)
        return cls(
            ids=torch.zeros(shape, dtype=torch.int64, device=device),
            logprobs=torch.zeros(shape, dtype=torch.float32, device=device),
            rank=torch.zeros(num_rows, dtype=torch.int64, device=device),
        )

    def store(self, rows: Tensor, source: RowLogprobs, source_rows: Tensor) -> None:
        """Copy `source_rows` of another set into `rows` of this one."""
        self.ids[rows] = source.ids[source_rows]
        self.logprobs[rows] = source.logprobs[source_rows]
        self.rank[rows] = source.rank[source_rows]


def row_logprobs(
    logits_RK: Tensor, column_R: Tensor, column_ids_K: Tensor, num_top: int
) -> RowLogprobs:
    """Log-probabilities over the allowed columns, from clean logits.

    Args:
        logits_RK: logits before temperature and noise; not modified.
        column_R: int64, the proposed column of each row.
        column_ids_K: int64, token id of each column.
        num_top: most likely tokens to list, at most K.
    """
    logprobs_RK = logits_RK.float().log_softmax(-1)
    chosen = logprobs_RK.gather(-1, column_R[:, None])
    top = logprobs_RK.topk(min(num_top, logprobs_RK.shape[-1]), dim=-1)
    return RowLogprobs(
        ids=column_ids_K[torch.cat([column_R[:, None], top.indices], dim=-1)],
        logprobs=torch.cat([chosen, top.values], dim=-1),
        rank=(logprobs_RK > chosen).sum(-1) + 1,
    )
