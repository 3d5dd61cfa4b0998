"""Where the rows of a step come from.

A `Feed` gives every step its micro-batches and knows its position, so that a run can be resumed.
`RecordFeed` lays the records of a mixture out and cuts them into micro-batches; `FunctionFeed`
computes each step's batch from its number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vllm_dynin.canvas import Task
from vllm_dynin.sampling.noise import mix_key
from vllm_dynin.training_ext.collate import Batch, collate
from vllm_dynin.training_ext.records import Record, SampleContext, make_sample
from vllm_dynin.training_ext.trainer.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One forward and backward pass of one process.

    Args:
        batches: the rows of each direction, each at its own length.
        rows: number of each row among all rows of its direction in the step, over all
            micro-batches and ranks: what its noise is drawn by.
        num_rows: rows of each direction in the whole step, over all ranks.
    """

    batches: Mapping[Task, Batch]
    rows: Mapping[Task, Sequence[int]]
    num_rows: Mapping[Task, int]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the rows of a rank stand among those of all ranks.

    Args:
        first: number of its first row of each direction.
        total: rows of each direction over all ranks.
        failures: why ranks have no rows for this step.
    """

    first: Mapping[Task, int]
    total: Mapping[Task, int]
    failures: tuple[str, ...] = ()


Place = Callable[[Mapping[Task, int], str | None], Places]
"""The places of this rank's rows, given how many it has, or why it has none."""


class DataFailed(ValueError):
    """The data ended the run: raised by every rank in the same step, so that it can be saved."""


def alone(counts: Mapping[Task, int], failure: str | None = None) -> Places:
    """The places of the only process."""
    return Places(
        first=dict.fromkeys(counts, 0),
        total=dict(counts),
        failures=() if failure is None else (failure,),
    )


class Mixture(Protocol):
    """An endless, deterministic stream of records; `training_ext.data.Mixture` is the big one."""

    def next_step(self) -> Mapping[Task, Sequence[Record]]:
        """The records of this rank in the next optimiser step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position."""
        ...


class Feed(Protocol):
    """Micro-batches of each step."""

    def next_step(self) -> list[MicroBatch]:
        """The micro-batches of this rank in the next step, `num_micro_batches` of them."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position."""
        ...


class FunctionFeed:
    """One batch of one direction a step, computed from the step's number.

    Args:
        batch_at: the batch of a step, counted from 0; equal steps must give equal batches.
        task: its direction.
    """

    def __init__(self, batch_at: Callable[[int], Batch], task: Task = Task.TEXT_TO_TEXT) -> None:
        self._batch_at, self._task, self._step = batch_at, task, 0

    def next_step(self) -> list[MicroBatch]:
        """The batch of the next step, as one micro-batch."""
        batch = self._batch_at(self._step)
        self._step += 1
        num_rows = batch.shape[0]
        return [
            MicroBatch(
                batches={self._task: batch},
                rows={self._task: range(num_rows)},
                num_rows={self._task: num_rows},
            )
        ]

    def state_dict(self) -> dict[str, Any]:
        """The number of the next step."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with that step."""
        self._step = int(state["step"])


@dataclass
class MemoryMixture:
    """A mixture of records that lie in memory: for tests and models small enough for it.

    Every step draws the same number of records of each direction. They come in a shuffled order
    that is drawn anew each time all have been seen, and is a function of the seed, the direction
    and the round. Several ranks share the order and take turns.

    Args:
        records: of each direction.
        rows: how many of each direction a step takes, over all ranks; 0 leaves one out.
        seed: of the order.
        rank: index of this process.
        world_size: number of processes.

    Raises:
        ValueError: a direction has no records, or its rows do not divide over the ranks.
    """

    records: Mapping[Task, Sequence[Record]]
    rows: Mapping[Task, int]
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self._drawn = dict.fromkeys(self.rows, 0)
        self._orders: dict[Task, tuple[int, list[int]]] = {}
        for task, rows in self.rows.items():
            if rows and not self.records.get(task):
                raise ValueError(f"{rows} rows of {task} a step, but there are no records of it")
            if rows % self.world_size:
                raise ValueError(
                    f"{rows} rows of {task} do not divide over {self.world_size} processes; use a "
                    "multiple"
                )

    def next_step(self) -> dict[Task, list[Record]]:
        """This rank's records of the next step."""
        found = {}
        for task, rows in self.rows.items():
            start = self._drawn[task]
            share = rows // self.world_size
            first = start + self.rank * share
            if share:
                found[task] = [self._at(task, index) for index in range(first, first + share)]
            self._drawn[task] = start + rows
        return found

    def state_dict(self) -> dict[str, Any]:
        """How many records of each direction were drawn, over all ranks."""
        return {"seed": self.seed, "drawn": {str(task): n for task, n in self._drawn.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue behind those.

        Raises:
            ValueError: the state is one of another mixture.
        """
        drawn = {Task(task): int(number) for task, number in state["drawn"].items()}
        if drawn.keys() != self._drawn.keys() or state["seed"] != self.seed:
            raise ValueError(
                f"the position is of directions {', '.join(map(str, drawn))} and seed "
                f"{state['seed']}, this mixture of {', '.join(map(str, self._drawn))} and seed "
                f"{self.seed}; resume with the mixture it was saved with"
            )
        self._drawn = drawn

    def _at(self, task: Task, index: int) -> Record:
        records = self.records[task]
        round_number, offset = divmod(index, len(records))
        known, order = self._orders.get(task, (-1, []))
        if known != round_number:
            order = list(range(len(records)))
            random.Random(f"{self.seed} {task} {round_number}").shuffle(order)
            self._orders[task] = (round_number, order)
        return records[order[offset]]


class RecordFeed:
    """Lays the records of a mixture out and cuts each step into micro-batches.

    What is random in a layout (dropped conditions, drawn instructions) depends on the seed, the
    step and the record's place in the step over all ranks, so neither the number of micro-batches
    nor that of processes changes it.

    Args:
        mixture: the records of this rank.
        context: how a record becomes a sample.
        config: the run; its seed and number of micro-batches are read.
        place: of this rank's rows among those of all ranks; None for one process.
    """

    def __init__(
        self,
        mixture: Mixture,
        context: SampleContext,
        config: TrainConfig,
        place: Place | None = None,
    ) -> None:
        self.mixture, self.context = mixture, context
        self._seed, self._num_micro, self._step = config.seed, config.num_micro_batches, 0
        self._place = place or alone

    def next_step(self) -> list[MicroBatch]:
        """Rows of each direction dealt evenly over the micro-batches, in the mixture's order.

        Raises:
            DataFailed: some rank's data can give no more rows.
            ValueError: a step has fewer rows than micro-batches.
        """
        by_task, failure = self._draw()
        self._step += 1
        places = self._place({task: len(records) for task, records in by_task.items()}, failure)
        if places.failures:
            raise DataFailed("; ".join(dict.fromkeys(places.failures)))
        batches: list[dict[Task, Batch]] = [{} for _ in range(self._num_micro)]
        rows: list[dict[Task, Sequence[int]]] = [{} for _ in range(self._num_micro)]
        offset = 0  # directions take turns in being the first to leave a micro-batch without a row
        for task, records in by_task.items():
            first = places.first[task]
            samples = [
                make_sample(record, self.context, self._rng(task, first + row))
                for row, record in enumerate(records)
            ]
            for part, start, stop in _deal(len(samples), self._num_micro, offset):
                if stop > start:
                    batches[part][task] = collate(
                        samples[start:stop], keeps_padding=self.context.keeps_padding
                    )
                    rows[part][task] = range(first + start, first + stop)
            offset += len(samples)
        if not all(batches):
            raise ValueError(
                f"step {self._step} has {sum(map(len, by_task.values()))} rows for "
                f"{self._num_micro} micro-batches; draw more rows or use fewer micro-batches"
            )
        return [
            MicroBatch(batches=b, rows=r, num_rows=places.total)
            for b, r in zip(batches, rows, strict=True)
        ]

    def _draw(self) -> tuple[dict[Task, Sequence[Record]], str | None]:
        """This rank's records; an error waits until all ranks know of it, or they would hang."""
        try:
            return {task: rows for task, rows in self.mixture.next_step().items() if rows}, None
        except ValueError as error:
            return {}, str(error)

    def state_dict(self) -> dict[str, Any]:
        """Position of the mixture and number of the step."""
        return {"step": self._step, "mixture": self.mixture.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go there."""
        self._step = int(state["step"])
        self.mixture.load_state_dict(state["mixture"])

    def _rng(self, task: Task, row: int) -> random.Random:
        task_key = int.from_bytes(task.value.encode())
        return random.Random(mix_key(self._seed, self._step, task_key, row))


def _deal(count: int, parts: int, offset: int) -> list[tuple[int, int, int]]:
    """(part, start, stop): contiguous runs of `count` rows, sizes as even as can be.

    Runs that are one longer than others begin at part `offset`, so that small directions do not
    all fall into the first micro-batches.
    """
    short, longer = divmod(count, parts)
    runs, start = [], 0
    for index in range(parts):
        stop = start + short + (index < longer)
        runs.append(((index + offset) % parts, start, stop))
        start = stop
    return runs
