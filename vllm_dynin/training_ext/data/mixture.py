"""`Mixture`: the records of every training step, from all sources, for ever and repeatably.

Which source a record is drawn from, and which of its rows comes next, are functions of the seed and
of how many records all ranks have drawn so far. So the state is a few counters, resuming is exact,
and the ranks of a run together draw what a single process would: rank r takes the r-th part of each
step.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.data.bad import BadLog
from vllm_dynin.training_ext.data.keyed import Permutation, uniform
from vllm_dynin.training_ext.data.sources import ShuffledSource
from vllm_dynin.training_ext.records import Record


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How much of one direction a step takes, on each rank.

    Args:
        rows: records a step; or
        tokens: positions a step, padding included: as many records of similar length as fit.
        pool: records that are drawn together, sorted by length and cut into steps; they come in
            random order. 0 takes records as they are drawn, and is not for `tokens`.
        every: takes part in every so many steps, as the released stages alternate; 1 is all.
        phase: the first step it takes part in.
        weight: with `rows_per_step` of the mixture, its share of those rows; rows, tokens, every
            and pool mean nothing then.

    Raises:
        ValueError: not exactly one of rows, tokens and weight, or a number is out of range.
    """

    rows: int | None = None
    tokens: int | None = None
    pool: int = 0
    every: int = 1
    phase: int = 0
    weight: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("rows", "tokens", "weight") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{' and '.join(given) or 'nothing'} given; a direction takes exactly one of "
                "rows, tokens and weight"
            )
        if not getattr(self, given[0]) > 0:
            raise ValueError(f"{given[0]}={getattr(self, given[0])} must be positive")
        if self.tokens is not None and self.pool < 1:
            raise ValueError("tokens needs a pool to find records of similar length in, e.g. 512")
        if self.rows is not None and self.pool % self.rows:
            raise ValueError(f"pool={self.pool} is no multiple of rows={self.rows}")
        if self.every < 1 or not 0 <= self.phase < self.every:
            raise ValueError(f"every={self.every}, phase={self.phase}: 0 ≤ phase < every")
        if self.weight is not None and (self.pool or self.every != 1):
            raise ValueError("weight goes with neither pool nor every")


class Draws:
    """Draws of one direction, numbered over all ranks: which source, and which of its positions.

    Args:
        task: the direction.
        sources: at least one.
        weights: one for each source.
        seed: of the mixture.
    """

    def __init__(
        self, task: Task, sources: Sequence[ShuffledSource], weights: Sequence[float], seed: int
    ) -> None:
        names = [source.name for source in sources]
        if len(set(names)) != len(names):
            raise ValueError(
                f"{task.value}: sources {', '.join(names)}; give each a name of its own"
            )
        self._task, self._sources, self._seed = task, sources, seed
        self._weights = tuple(weights)
        self._bounds = list(accumulate(weights))
        self.num_drawn = 0
        self.counts = [0] * len(sources)

    def take(self, before: int, own: int, total: int) -> list[tuple[Record, int]]:
        """Draw for all ranks, and read what is this rank's.

        Args:
            before: draws of lower ranks.
            own: draws of this rank.
            total: draws of all.

        Returns:
            Each record with its length.
        """
        taken = []
        for offset in range(total):
            source = self._source(self.num_drawn)
            if before <= offset < before + own:
                taken.append(self._sources[source].at(self.counts[source]))
            self.counts[source] += 1
            self.num_drawn += 1
        return taken

    def _source(self, number: int) -> int:
        if len(self._sources) == 1:
            return 0
        point = uniform(self._seed, self._task.value, "source", number) * self._bounds[-1]
        return bisect.bisect_right(self._bounds, point)

    def sources(self) -> dict[str, dict[str, float]]:
        """Rows and weight of each source, by its name."""
        return {
            source.name: {"rows": source.size, "weight": weight}
            for source, weight in zip(self._sources, self._weights, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """As JSON values."""
        names = [source.name for source in self._sources]
        return {
            "num_drawn": self.num_drawn,
            "counts": dict(zip(names, self.counts, strict=True)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is of other sources.
        """
        names = [source.name for source in self._sources]
        if set(state["counts"]) != set(names):
            raise ValueError(
                f"{self._task.value}: the state is of sources {', '.join(state['counts'])}, the "
                f"mixture has {', '.join(names)}; go on with the sources the run began with"
            )
        self.num_drawn = state["num_drawn"]
        self.counts = [state["counts"][name] for name in names]


class Pool:
    """Records of one direction drawn together and cut into batches of similar length.

    Args:
        draws: of the direction.
        schedule: with a pool.
        rank: of this process.
        world_size: processes.
        key: of the order in which the batches of a pool come.
    """

    def __init__(
        self, draws: Draws, schedule: Schedule, rank: int, world_size: int, *key: int | str
    ) -> None:
        self._draws, self._schedule, self._key = draws, schedule, key
        self._rank, self._world_size = rank, world_size
        self._start = draws.state_dict()
        self._batches: list[list[Record]] = []
        self._num_given = 0

    def next(self) -> list[Record]:
        """The next batch."""
        if self._num_given == len(self._batches):
            self._fill()
        self._num_given += 1
        return self._batches[self._num_given - 1]

    def _fill(self) -> None:
        size = self._schedule.pool
        self._start, self._num_given = self._draws.state_dict(), 0
        drawn = self._draws.take(self._rank * size, size, size * self._world_size)
        drawn.sort(key=lambda pair: pair[1])  # stable: equal lengths stay in drawing order
        cut = _cut_by_tokens if self._schedule.tokens is not None else _cut_by_rows
        limit = self._schedule.tokens or self._schedule.rows
        assert limit is not None
        batches = cut(drawn, limit)
        order = Permutation(len(batches), *self._key, self._start["num_drawn"])
        self._batches = [batches[order(place)] for place in range(len(batches))]

    def state_dict(self) -> dict[str, Any]:
        """Where the pool was drawn, and how many of its batches are used up."""
        return {"start": self._start, "num_given": self._num_given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Draw the pool again and go on behind its used batches."""
        self._draws.load_state_dict(state["start"])
        self._start, self._batches, self._num_given = state["start"], [], 0
        if state["num_given"]:
            self._fill()
            self._num_given = state["num_given"]


def _cut_by_rows(drawn: Sequence[tuple[Record, int]], rows: int) -> list[list[Record]]:
    return [[r for r, _ in drawn[i : i + rows]] for i in range(0, len(drawn), rows)]


def _cut_by_tokens(drawn: Sequence[tuple[Record, int]], tokens: int) -> list[list[Record]]:
    """Greedily, in order of length: rows × longest ≤ tokens. A longer record is a row alone."""
    batches: list[list[Record]] = [[]]
    for record, length in drawn:
        if batches[-1] and (len(batches[-1]) + 1) * length > tokens:
            batches.append([])
        batches[-1].append(record)
    return batches


class Mixture:
    """The records of each step.

    Args:
        sources: direction → its sources and their weights.
        schedules: direction → how much of it a step takes.
        seed: of every draw.
        log: where the sources count bad samples.
        rank: of this process.
        world_size: processes that train together.
        rows_per_step: records a step and rank, shared out by the directions' weights.
        is_even: share them out so that after every step each direction has its part of all rows
            so far, to the nearest row or two; else every row's direction is drawn, and a step has
            more of some and fewer of others.

    Raises:
        ValueError: the parts do not fit together.
    """

    def __init__(
        self,
        sources: Mapping[Task, Sequence[tuple[ShuffledSource, float]]],
        schedules: Mapping[Task, Schedule],
        *,
        seed: int,
        log: BadLog,
        rank: int = 0,
        world_size: int = 1,
        rows_per_step: int | None = None,
        is_even: bool = False,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}, world_size={world_size}: 0 ≤ rank < world_size")
        if not schedules or set(sources) != set(schedules):
            raise ValueError("a mixture needs at least one direction, each with sources")
        is_weighted = {schedule.weight is not None for schedule in schedules.values()}
        if is_weighted != {rows_per_step is not None}:
            raise ValueError(
                "weights of directions and rows_per_step go together: give both, or rows or "
                "tokens for every direction"
            )
        self.bad = log
        self.step = 0
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._rows_per_step, self._is_even = rows_per_step, is_even
        self._schedules = dict(schedules)
        self._draws: dict[Task, Draws] = {}
        self._pools: dict[Task, Pool] = {}
        for task, schedule in schedules.items():
            opened, weights = zip(*sources[task], strict=True)
            self._draws[task] = Draws(task, opened, weights, seed)
            if schedule.pool:
                self._pools[task] = Pool(
                    self._draws[task], schedule, rank, world_size, seed, task.value, "pool"
                )

    def next_step(self) -> dict[Task, list[Record]]:
        """The records of this rank for the next step; directions without any are left out.

        Raises:
            TooManyBad: a source has more bad samples than allowed.
        """
        step, self.step = self.step, self.step + 1
        if self._rows_per_step is not None:
            return self._weighted_step(step, self._rows_per_step)
        records = {}
        for task, schedule in self._schedules.items():
            if step % schedule.every != schedule.phase:
                continue
            if task in self._pools:
                records[task] = self._pools[task].next()
            else:
                rows = schedule.rows
                assert rows is not None
                drawn = self._draws[task].take(self._rank * rows, rows, self._world_size * rows)
                records[task] = [record for record, _ in drawn]
        return records

    def identity(self) -> dict[str, Any]:
        """What its draws are computed from, by name, as JSON values: seed, and data by direction.

        A run that goes on with other data, sizes or weights trains something else.
        """
        return {
            "data.seed": self._seed,
            **{f"data.{task.value}": draws.sources() for task, draws in self._draws.items()},
        }

    def _weighted_step(self, step: int, rows: int) -> dict[Task, list[Record]]:
        tasks = list(self._schedules)
        # Seats of a step, those of rank 0 first; each goes to a direction.
        deal = self._even_seats if self._is_even else self._drawn_seats
        seats = deal(step, rows * self._world_size)
        first = self._rank * rows
        records = {}
        for task in tasks:
            own = seats[first : first + rows].count(task)
            drawn = self._draws[task].take(seats[:first].count(task), own, seats.count(task))
            if drawn:
                records[task] = [record for record, _ in drawn]
        return records

    def _drawn_seats(self, step: int, count: int) -> list[Task]:
        tasks = list(self._schedules)
        bounds = list(accumulate(self._schedules[task].weight or 0.0 for task in tasks))
        points = (uniform(self._seed, "seat", step, n) * bounds[-1] for n in range(count))
        return [tasks[bisect.bisect_right(bounds, point)] for point in points]

    def _even_seats(self, step: int, count: int) -> list[Task]:
        """Each seat to the direction that is furthest behind its share of all seats so far."""
        weights = {task: one.weight or 0.0 for task, one in self._schedules.items()}
        total = sum(weights.values())
        given = {task: draws.num_drawn for task, draws in self._draws.items()}
        seats = []
        for number in range(step * count + 1, (step + 1) * count + 1):
            task = max(weights, key=lambda t: weights[t] / total * number - given[t])
            given[task] += 1
            seats.append(task)
        return seats

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on as if nothing had happened, as JSON values."""
        tasks = {}
        for task, draws in self._draws.items():
            pool = self._pools.get(task)
            tasks[task.value] = draws.state_dict() if pool is None else pool.state_dict()
        return {
            "step": self.step,
            "seed": self._seed,
            "rank": self._rank,
            "world_size": self._world_size,
            "tasks": tasks,
            "bad": self.bad.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Without pools the state of any rank serves every rank, and their number may change. With
        pools each rank needs its own.

        Raises:
            ValueError: it is of another mixture.
        """
        if state["seed"] != self._seed:
            raise ValueError(f"the state is of seed {state['seed']}, the mixture of {self._seed}")
        if set(state["tasks"]) != {task.value for task in self._draws}:
            raise ValueError(
                f"the state is of directions {', '.join(state['tasks'])}, the mixture of "
                f"{', '.join(task.value for task in self._draws)}"
            )
        ours = (self._rank, self._world_size)
        if self._pools and (state["rank"], state["world_size"]) != ours:
            raise ValueError(
                f"the state is of rank {state['rank']} of {state['world_size']}, this is rank "
                f"{ours[0]} of {ours[1]}; with pools of similar length a run goes on with as many "
                "ranks as before"
            )
        for task, draws in self._draws.items():
            part = self._pools.get(task, draws)
            part.load_state_dict(state["tasks"][task.value])
        self.bad.load_state_dict(state["bad"])
        self.step = state["step"]


def approximate_length(record: Record) -> int:
    """Positions a record takes, roughly: its codes, and a token for every four bytes of text."""
    texts = [record.text, record.answer or "", *(turn["content"] for turn in record.turns)]
    codes = [
        *record.images,
        record.target_image or (),
        record.units or (),
        record.reply_units or (),
    ]
    return sum(map(len, codes)) + math.ceil(sum(len(text.encode()) for text in texts) / 4)
