"""Logits of one engine step, computed for the wanted rows only and in bounded memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm_dynin.canvas import GuidanceForm
from vllm_dynin.model_executor.head import RestrictedHead
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.guidance import guide
from vllm_dynin.sizing import LOGIT_ELEMENTS


@dataclass(frozen=True, kw_only=True)
class WantedRows:
    """The rows of a step whose logits one request needs.

    Args:
        rows: int64 [R], rows of the step's hidden states, conditional stream.
        columns: allowed ids.
        unconditional_rows: int64 [R], the same slots in the second stream; None without guidance.
        unconditional_RD: hidden states of those slots instead, where an earlier step computed them.
        guidance_scale: s.
        form: how the streams are combined.
    """

    rows: Tensor
    columns: Columns
    unconditional_rows: Tensor | None = None
    unconditional_RD: Tensor | None = None
    guidance_scale: float = 0.0
    form: GuidanceForm = GuidanceForm.DELTA

    @property
    def is_guided(self) -> bool:
        """Whether there is a second stream."""
        return self.unconditional_rows is not None or self.unconditional_RD is not None

    @property
    def num_rows(self) -> int:
        """Rows of both streams."""
        return len(self.rows) * (2 if self.is_guided else 1)

    def unconditional(self, hidden_TD: Tensor) -> Tensor:
        """Hidden states [R, D] of the second stream, given those of the step."""
        if self.unconditional_RD is not None:
            return self.unconditional_RD
        return hidden_TD[self.unconditional_rows]

    def hidden(self, hidden_TD: Tensor) -> Tensor:
        """Hidden states [num_rows, D] of both streams, conditional first."""
        if not self.is_guided:
            return hidden_TD[self.rows]
        return torch.cat([hidden_TD[self.rows], self.unconditional(hidden_TD)])


class StepLogits:
    """Guided logits, read per request.

    Requests that share their columns are multiplied by the head in one product while it stays
    within `max_elements`; a request that does not fit is multiplied tile by tile. A product is
    made when the first of its rows is read and dropped when the next one is made, so requests are
    to be read in `order`.

    Args:
        head: the output head.
        hidden_TD: hidden states of all rows of the step.
        wanted: one entry per denoising request, in batch order.
    """

    max_elements: ClassVar[int] = LOGIT_ELEMENTS

    def __init__(self, head: RestrictedHead, hidden_TD: Tensor, wanted: list[WantedRows]) -> None:
        self._head, self.hidden_TD, self._wanted = head, hidden_TD, wanted
        self._computed: dict[int, Tensor] = {}
        groups = list(self._groups())
        self._group_of = {request: group for group in groups for request in group}
        alone = [request for request in range(len(wanted)) if request not in self._group_of]
        self.order = [*self._group_of, *alone]
        """Requests in the order in which they are to be read."""

    @classmethod
    def max_rows(cls, columns: Columns) -> int:
        """Rows that are multiplied by the head at a time."""
        return max(1, cls.max_elements // columns.width)

    def rows(self, request: int, first: int, stop: int) -> Tensor:
        """Guided logits [stop - first, K] of wanted rows `[first, stop)` of a request.

        The result may be modified; each row is read once.
        """
        if request in self._group_of and request not in self._computed:
            self._compute(self._group_of[request])
        wanted, columns = self._wanted[request], self._wanted[request].columns
        computed = self._computed.get(request)
        if computed is not None:
            conditional = computed[first:stop]
        else:
            conditional = self._head(self.hidden_TD[wanted.rows[first:stop]], columns)
        if not wanted.is_guided:
            return conditional
        if computed is not None:
            offset = len(wanted.rows)
            unconditional = computed[offset + first : offset + stop]
        else:
            hidden = wanted.unconditional(self.hidden_TD)[first:stop]
            unconditional = self._head(hidden, columns)
        return guide(conditional, unconditional, wanted.guidance_scale, wanted.form)

    def _compute(self, group: list[int]) -> None:
        """Multiply a group's rows by the head, in the place of the previous group's."""
        self._computed = {}
        requests = [self._wanted[request] for request in group]
        hidden = torch.cat([wanted.hidden(self.hidden_TD) for wanted in requests])
        logits = self._head(hidden, requests[0].columns)
        parts = logits.split([wanted.num_rows for wanted in requests])
        self._computed = dict(zip(group, parts, strict=True))

    def _groups(self) -> Iterator[list[int]]:
        """Requests to multiply together: same columns, few enough rows."""
        by_columns: dict[Columns, list[int]] = defaultdict(list)
        for request, wanted in enumerate(self._wanted):
            by_columns[wanted.columns].append(request)
        for columns, requests in by_columns.items():
            group, num_rows = list[int](), 0
            for request in requests:
                size = self._wanted[request].num_rows
                if size > self.max_rows(columns):
                    continue  # read tile by tile
                if num_rows + size > self.max_rows(columns):
                    yield group
                    group, num_rows = [], 0
                group.append(request)
                num_rows += size
            if group:
                yield group
