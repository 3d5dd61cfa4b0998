"""Guided logits of the requests that are decoded together."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_dynin.model_executor.head import RestrictedHead
from vllm_dynin.model_executor.step_logits import StepLogits
from vllm_dynin.sampling.batched import BatchedStep, Group
from vllm_dynin.sampling.guidance import guide
from vllm_dynin.sampling.tiles import tile_height


class GroupLogits:
    """Logits of a group's rows: one product with the head while that fits into memory.

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
        self._first = self._stop = 0  # rows of the step of which there are logits now
        self._logits: tuple[Tensor, ...] = ()

    def __call__(self, group: Group, first: int, stop: int) -> Tensor:
        """Guided logits [stop - first, K] of rows of the step; see `batched.GroupLogits`."""
        if stop > self._stop:
            self._logits = ()  # before the next ones are made
            self._first = first
            self._stop = min(group.stop, first + _product_height(group))
            self._logits = self._products(group)
        own, *second = (part[first - self._first : stop - self._first] for part in self._logits)
        if group.guidance is None:
            return own
        return guide(own, second[0], group.guidance.scale, group.guidance.form)

    def _products(self, group: Group) -> tuple[Tensor, ...]:
        rows_R = self._step.rows_R[self._first : self._stop]
        if group.guidance is None:
            return (self._head(self._hidden_TD[rows_R], group.columns),)
        second_R = self._step.second_rows_R[self._first : self._stop]
        if group.guidance.is_kept:
            hidden = torch.cat([self._hidden_TD[rows_R], self._kept_PD[second_R]])
        else:
            hidden = self._hidden_TD[torch.cat([rows_R, second_R])]
        return self._head(hidden, group.columns).chunk(2)


def _product_height(group: Group) -> int:
    """Rows that are multiplied by the head at a time, a multiple of those that are read."""
    num_streams = 1 if group.guidance is None else 2
    height = tile_height(group.columns.width)
    fitting = StepLogits.max_rows(group.columns) // num_streams
    return max(height, fitting // height * height)
