"""One denoising step of many requests at once, over canvases that stay on the device.

The same functions as `CanvasDecoder`'s, for requests whose steps are known beforehand
(`fixed_steps.py`): nothing is asked of the device. All canvases lie in one flat store of ids; a
slot is addressed by its *cell* there.

Shape suffixes: R wanted rows of all requests of the step, C cells that are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_dynin.canvas import GuidanceForm, Parity
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.confidence import Proposals, Remasking, propose
from vllm_dynin.sampling.fixed_steps import FixedStep
from vllm_dynin.sampling.maskgit import ranking_score
from vllm_dynin.sampling.noise import SlotDraws, StepDraws
from vllm_dynin.sampling.proposals import propose_sampled
from vllm_dynin.sampling.staging import Staging
from vllm_dynin.sampling.tiles import row_tiles


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
        first_cell: cell of its slot 0.
        first_row: row of the hidden states that holds its slot 0.
        second_row: the same in its second stream, counted among the kept rows where it is kept.
        guidance: None without a second stream.
    """

    step: FixedStep
    first_cell: int
    first_row: int
    second_row: int = 0
    guidance: Guidance | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive rows that are proposed for in one call.

    They are one request's, or those of several requests with equal rules and nothing random.

    Args:
        first: first row.
        stop: row behind the last.
        request: the (first) one they belong to.
    """

    first: int
    stop: int
    request: RequestStep

    @property
    def step(self) -> FixedStep:
        """What that request does."""
        return self.request.step


@dataclass(frozen=True, slots=True)
class Group:
    """Rows `first` to `stop` of the step, which go through the head together."""

    first: int
    stop: int
    runs: tuple[Run, ...]

    @property
    def columns(self) -> Columns:
        """Allowed ids."""
        return self.runs[0].step.rule.columns

    @property
    def guidance(self) -> Guidance | None:
        """None without a second stream."""
        return self.runs[0].request.guidance


GroupLogits = Callable[[Group, int, int], Tensor]
"""`logits(group, first, stop)`: guided logits [stop - first, K] of those rows of the step. They may
be modified; each row is asked for once, in order."""


class BatchedStep:
    """A step of some requests: laid out on the host, staged, and then run on the device.

    Args:
        requests: not empty.
        mask_id: what an undecided cell holds.
        staging: has begun; it is sent before `find` is called.
    """

    def __init__(self, requests: Sequence[RequestStep], mask_id: int, staging: Staging) -> None:
        self._mask_id = mask_id
        requests = sorted(requests, key=_place)
        counts = np.array([request.step.num_masked for request in requests])
        bounds = np.concatenate([[0], np.cumsum(counts)])
        self.num_rows = int(bounds[-1])
        self._runs = _runs(requests, bounds.tolist())
        self.groups = list(_groups(self._runs))
        cells = [np.arange(r.step.start, r.step.stop) + r.first_cell for r in requests]
        self._looked_at = staging.put(np.concatenate(cells))
        # What is added to a wanted cell to have its row, its row in the second stream, its slot;
        # and the number of the request it belongs to.
        ways = np.array(
            [
                (r.first_row - r.first_cell, r.second_row - r.first_cell, -r.first_cell, number)
                for number, r in enumerate(requests)
            ]
        )
        self._ways = staging.put(np.repeat(ways.T, counts, axis=1))
        written = [
            _written(first, r.step) for first, r in zip(bounds.tolist()[:-1], requests, strict=True)
        ]
        self._written = staging.put(np.concatenate(written))

    def find(self, ids: Tensor) -> None:
        """Find the masked cells: sets `rows_R` and `second_rows_R`, int64.

        Args:
            ids: int64, the store of all canvases.
        """
        looked_at_C = self._looked_at.tensor
        is_masked_C = ids[looked_at_C] == self._mask_id
        # Their number is known, so a stable sort finds them without a device sync.
        order = torch.sort(is_masked_C.to(torch.uint8), descending=True, stable=True).indices
        self._cells_R = looked_at_C[order[: self.num_rows]]
        self.rows_R, self.second_rows_R, self._slots_R = self._ways.tensor[:3] + self._cells_R

    def run(self, ids: Tensor, logits: GroupLogits) -> None:
        """Propose, and write what is decided into the store.

        Args:
            ids: as for `find`, which was called.
            logits: gives guided logits of rows of a group.
        """
        tokens_R = torch.empty_like(self._cells_R)
        score_R = torch.empty(self.num_rows, dtype=torch.float64, device=ids.device)
        for group in self.groups:
            self._propose(group, logits, tokens_R, score_R)
        self._rank(score_R)
        # Rows by request, and within a request by score: so the places that are written are known.
        order = torch.sort(score_R, stable=True).indices
        owners_R = self._ways.tensor[3][order]
        order = order[torch.sort(owners_R, stable=True).indices]
        written = order[self._written.tensor]
        ids.index_copy_(0, self._cells_R[written], tokens_R[written])

    def _propose(
        self, group: Group, logits: GroupLogits, tokens_R: Tensor, score_R: Tensor
    ) -> None:
        column_ids = group.columns.ids(tokens_R.device)
        for first, stop in row_tiles(group.stop - group.first, group.columns.width):
            first, stop = group.first + first, group.first + stop
            tile = group.columns.forbid_excluded(logits(group, first, stop))
            for run in group.runs:
                low, high = max(first, run.first), min(stop, run.stop)
                if low < high:
                    draws = self._draws(run, low, high)
                    found = _propose(tile[low - first : high - first], draws, run.step)
                    tokens_R[low:high] = column_ids[found.column]
                    score_R[low:high] = found.confidence

    def _rank(self, score_R: Tensor) -> None:
        """Turn confidences into scores, of which the lowest are chosen."""
        for is_image, runs in groupby(self._runs, key=lambda run: run.step.noise is not None):
            each = list(runs)
            first, stop = each[0].first, each[-1].stop
            if not is_image:
                score_R[first:stop].neg_()
                continue
            for run in each:
                part_R = score_R[run.first : run.stop]
                draws = self._draws(run, run.first, run.stop)
                part_R.copy_(ranking_score(part_R.float(), run.step.noise or 0.0, draws))

    def _draws(self, run: Run, first: int, stop: int) -> SlotDraws | None:
        if not _is_random(run.step):
            return None
        step, rule = run.step, run.step.rule
        return StepDraws(rule.seed, rule.index, step.block, step.step).at(self._slots_R[first:stop])


def _propose(logits_RK: Tensor, draws: SlotDraws | None, step: FixedStep) -> Proposals:
    rule = step.rule
    if rule.kind == "sampled":
        return propose_sampled(
            logits_RK, draws, temperature=rule.temperature, parity=Parity.DEFAULT
        )
    remasking: Remasking = "random" if rule.kind == "random" else "low_confidence"
    return propose(logits_RK, draws, temperature=rule.temperature, remasking=remasking)


def _is_random(step: FixedStep) -> bool:
    return step.rule.temperature > 0 or step.rule.kind == "random" or bool(step.noise)


def _product(request: RequestStep) -> tuple[Any, ...]:
    """Requests alike in this go through the head together."""
    columns, guidance = request.step.rule.columns, request.guidance
    second = () if guidance is None else (guidance.form, guidance.scale, guidance.is_kept)
    return columns.ranges, columns.excluded, second


def _place(request: RequestStep) -> tuple[Any, ...]:
    """Sorts requests so that those that are proposed for together stand together."""
    step = request.step
    return (*_product(request), step.rule.kind, step.rule.temperature, step.noise is not None)


def _runs(requests: Sequence[RequestStep], bounds: Sequence[int]) -> list[Run]:
    runs: list[Run] = []
    previous = None
    for request, (first, stop) in zip(requests, pairwise(bounds), strict=True):
        place = None if _is_random(request.step) else _place(request)
        if place is not None and place == previous:
            runs[-1] = replace(runs[-1], stop=stop)
        else:
            runs.append(Run(first, stop, request))
        previous = place
    return runs


def _groups(runs: Sequence[Run]) -> Iterator[Group]:
    for _, group in groupby(runs, key=lambda run: _product(run.request)):
        members = tuple(group)
        yield Group(members[0].first, members[-1].stop, members)


def _written(first: int, step: FixedStep) -> NDArray[np.int64]:
    """Places of a request's rows, in order of their scores, that are decided."""
    if step.keeps_others:
        return np.arange(first + step.num_chosen, first + step.num_masked)
    return np.arange(first, first + step.num_chosen)
