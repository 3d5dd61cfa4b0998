"""Logits of the requests that are decoded together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vllm_dynin.kernels.choice import Implementation, chosen
from vllm_dynin.model_executor.head import RestrictedHead
from vllm_dynin.model_executor.step_logits import StepLogits
from vllm_dynin.sampling.batched import BatchedStep, Group
from vllm_dynin.sampling.tiles import row_tiles


class GroupLogits:
    """Logits of a group's rows, by the head products that fit into memory.

    Args:
        head: the output head.
        hidden_TD: hidden states of all rows of the step.
        kept_PD: hidden states of second streams that earlier steps computed.
        step: gives the rows; its `find` was called.
    """

    def __init__(
        self, head: RestrictedHead, hidden_TD: Tensor, kept_PD: Tensor, step: BatchedStep
    ) -> None:
        self._head, self._hidden_TD, self._kept_PD, self._step = head, hidden_TD, kept_PD, step

    def __call__(self, group: Group) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Tiles of logits; see `batched.GroupLogits`."""
        height = max(1, StepLogits.max_rows(group.columns) // (2 if group.has_second else 1))
        for first in range(group.first, group.stop, height):
            stop = min(first + height, group.stop)
            logits = self._head(self._hidden(group, first, stop), group.columns)
            own, *second = logits.split(stop - first)
            del logits
            for low, high in self._tiles(stop - first, group):
                yield high - low, own[low:high], second[0][low:high] if second else None

    def _hidden(self, group: Group, first: int, stop: int) -> Tensor:
        """Hidden states of rows of the step, and behind them those of their second streams."""
        rows_R = self._step.rows_R[first:stop]
        if not group.has_second:
            return self._hidden_TD[rows_R]
        second_R = self._step.second_rows_R[first:stop]
        if group.is_kept:
            return torch.cat([self._hidden_TD[rows_R], self._kept_PD[second_R]])
        return self._hidden_TD[torch.cat([rows_R, second_R])]

    def _tiles(self, num_rows: int, group: Group) -> Iterator[tuple[int, int]]:
        kernel = chosen(self._hidden_TD.device)
        if kernel in (Implementation.TRITON, Implementation.CUDA):  # no memory beside the logits
            yield 0, num_rows
        else:
            yield from row_tiles(num_rows, group.columns.width)
