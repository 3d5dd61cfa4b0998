"""One denoising step of many requests at once, over canvases that stay on the device.

The same functions as `CanvasDecoder`'s, for requests whose steps are known beforehand
(`fixed_steps.py`): nothing is asked of the device, and the kernels (`row_statistics`, `unmask`)
take the rows of all requests together. All canvases lie in one store of ids; a slot is addressed
by its *cell* there.

Shape suffixes: R wanted rows of all requests of the step, C cells that are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_dynin.canvas import GuidanceForm
from vllm_dynin.kernels import step_table
from vllm_dynin.kernels.row_statistics import RowInputs, row_statistics
from vllm_dynin.kernels.step_table import Column, Proposal, Ranking, Rule
from vllm_dynin.kernels.unmask import Candidates, unmask
from vllm_dynin.sampling.canvas_memory import CanvasMemory
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.fixed_steps import FixedStep
from vllm_dynin.sampling.staging import Staging


@dataclass(frozen=True, slots=True)
class Guidance:
    """How the two streams of a request are combined, and where the second one's rows are.

    Args:
        scale: s.
        form: which formula.
        is_kept: whether the second stream was computed in an earlier step.
    """

    scale: float
    form: GuidanceForm
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class RequestStep:
    """A request's part in a step.

    Args:
        step: what it does.
        canvas: line of the store that has its canvas.
        first_row: row of the hidden states that holds its slot 0.
        second_row: the same in its second stream, counted among the kept rows where it is kept.
        guidance: None without a second stream.
    """

    step: FixedStep
    canvas: int
    first_row: int
    second_row: int = 0
    guidance: Guidance | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Rows `first` to `stop` of the step: those of requests that go through the head together.

    Args:
        first: first row.
        stop: row behind the last.
        columns: allowed ids.
        has_second: whether they have a second stream.
        is_kept: whether its hidden states are kept ones.
        proposals: how proposals are made.
    """

    first: int
    stop: int
    columns: Columns
    has_second: bool
    is_kept: bool
    proposals: frozenset[Proposal]


GroupLogits = Callable[[Group], Iterator[tuple[int, Tensor, Tensor | None]]]
"""`logits(group)`: tiles of the group's rows in order, `(rows, logits [rows, K], those of the
second stream or None)`."""


class BatchedStep:
    """A step of some requests: laid out on the host, staged, and then run on the device.

    Args:
        requests: not empty.
        mask_id: what an undecided cell holds.
        memory: where the canvases are.
        staging: has begun; it is sent before `find` is called.
    """

    def __init__(
        self,
        requests: Sequence[RequestStep],
        mask_id: int,
        memory: CanvasMemory,
        staging: Staging,
    ) -> None:
        self._mask_id, self._memory = mask_id, memory
        requests = sorted(requests, key=_product)
        counts = np.array([request.step.num_masked for request in requests])
        bounds = np.concatenate([[0], np.cumsum(counts)]).tolist()
        self.num_rows = bounds[-1]
        self.groups = list(_groups(requests, bounds))
        steps = [request.step for request in requests]
        self._window = max(step.stop - step.start for step in steps)
        self._rules = {_rule(step) for step in steps}
        self._rankings = {_ranking(step) for step in steps}
        first_cells = np.array([request.canvas for request in requests]) * memory.width
        cells = [
            np.arange(step.start, step.stop) + first
            for step, first in zip(steps, first_cells.tolist(), strict=True)
        ]
        self._looked_at = staging.put(np.concatenate(cells))
        # What is added to a wanted cell to have its row, its row in the second stream, its slot;
        # and the number of the request it belongs to.
        ways = np.array(
            [
                [request.first_row for request in requests] - first_cells,
                [request.second_row for request in requests] - first_cells,
                -first_cells,
                np.arange(len(requests)),
            ]
        )
        self._ways = staging.put(np.repeat(ways, counts, axis=1))
        self._table = staging.put(_table(requests, mask_id))

    def find(self) -> None:
        """Find the masked cells: sets `rows_R` and `second_rows_R`, int64."""
        looked_at_C = self._looked_at.tensor
        is_masked_C = self._memory.flat[looked_at_C] == self._mask_id
        # Their number is known, so a stable sort finds them without a device sync.
        order = torch.sort(is_masked_C.to(torch.uint8), descending=True, stable=True).indices
        cells_R = looked_at_C[order[: self.num_rows]]
        self.rows_R, self.second_rows_R, self._slots_R = self._ways.tensor[:3] + cells_R

    def run(self, logits: GroupLogits) -> None:
        """After `find`: propose, and write what is decided.

        Args:
            logits: gives logits of rows of a group.
        """
        memory = self._memory
        tokens, probabilities = list[Tensor](), list[Tensor]()
        request_R, table_BC = self._ways.tensor[3], self._table.tensor
        for group in self.groups:
            column_ids = group.columns.ids(request_R.device)
            first = group.first
            for count, own_RK, second_RK in logits(group):
                rows = slice(first, first + count)
                found = row_statistics(
                    RowInputs(
                        own_RK,
                        table_BC,
                        request_R[rows],
                        self._slots_R[rows],
                        unconditional_UK=second_RK,
                        pair_R=None if second_RK is None else memory.numbers[:count],
                        forbidden_K=group.columns.forbidden(own_RK.device),
                        proposals=group.proposals,
                    )
                )
                tokens.append(column_ids[found.column])
                probabilities.append(found.probability)
                first += count
        unmask(
            memory.canvases,
            table_BC,
            Candidates(request_R, self._slots_R, torch.cat(tokens), torch.cat(probabilities)),
            None,
            width=self._window,
            rules=self._rules,
            rankings=self._rankings,
            revokes=False,
        )


def _product(request: RequestStep) -> tuple[Any, ...]:
    """Requests alike in this go through the head together."""
    columns, guidance = request.step.rule.columns, request.guidance
    return (
        columns.ranges,
        columns.excluded,
        guidance is not None,
        guidance is not None and guidance.is_kept,
    )


def _groups(requests: Sequence[RequestStep], bounds: Sequence[int]) -> Iterator[Group]:
    index = 0
    for (_, _, has_second, is_kept), members in groupby(requests, key=_product):
        steps = [request.step for request in members]
        yield Group(
            bounds[index],
            bounds[index + len(steps)],
            steps[0].rule.columns,
            has_second,
            is_kept,
            frozenset(_proposal(step) for step in steps),
        )
        index += len(steps)


def _proposal(step: FixedStep) -> Proposal:
    is_drawn = step.rule.temperature > 0
    if step.rule.kind == "sampled":
        return Proposal.SOFTMAX if is_drawn else Proposal.SOFTMAX_ARGMAX
    return Proposal.GUMBEL if is_drawn else Proposal.ARGMAX


def _rule(step: FixedStep) -> Rule:
    return Rule.REMASK if step.keeps_others else Rule.SCHEDULE


def _ranking(step: FixedStep) -> Ranking:
    if step.noise is not None:
        return Ranking.NOISE
    return Ranking.RANDOM if step.rule.kind == "random" else Ranking.CONFIDENCE


_FORMS = {
    GuidanceForm.DELTA: step_table.Guidance.DELTA,
    GuidanceForm.WEIGHTED: step_table.Guidance.WEIGHTED,
}


def _table(requests: Sequence[RequestStep], mask_id: int) -> NDArray[np.int64]:
    """The step table [B, WIDTH]; see `step_table`."""
    table = np.zeros((len(requests), step_table.WIDTH), dtype=np.int64)
    table[:, Column.MAX] = step_table.UNLIMITED
    table[:, Column.MASK_ID] = mask_id
    wholes, reals = [], []
    for request in requests:
        step, guidance, rule = request.step, request.guidance, request.step.rule
        seed = (rule.seed + (1 << 63)) % (1 << 64) - (1 << 63)
        form = step_table.Guidance.OFF if guidance is None else _FORMS[guidance.form]
        place = step_table.place(rule.index, step.block)
        decides = (_proposal(step), form, step.start, step.stop, _rule(step), _ranking(step))
        wholes.append((request.canvas, seed, step.step, place, *decides, step.num_chosen))
        scale = 0.0 if guidance is None else guidance.scale
        reals.append((rule.temperature or 1.0, scale, step.noise or 0.0))
    table[:, : Column.COUNT + 1] = wholes
    table.view(np.float64)[:, Column.TEMPERATURE : Column.NOISE_SCALE + 1] = reals
    return table
