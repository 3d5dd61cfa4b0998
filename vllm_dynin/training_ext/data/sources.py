"""Sources: data sets as functions from a position to a record, in shuffled order, for ever.

A position counts the records drawn from one source by all ranks together since the start of
training. What stands at it is computed from the seed, so a source has no state: resuming is asking
for the next position, on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from vllm_dynin.canvas import Task
from vllm_dynin.processors.templates import DoesNotFit
from vllm_dynin.training_ext.data.adapters import find_adapter
from vllm_dynin.training_ext.data.bad import BadEntry, BadKind, BadLog, BadSample, TooManyBad
from vllm_dynin.training_ext.data.encode import Encoder
from vllm_dynin.training_ext.data.keyed import BlockPermutation, Permutation, draw
from vllm_dynin.training_ext.data.rows import Table
from vllm_dynin.training_ext.data.tables import open_table
from vllm_dynin.training_ext.data.thoughts import SWITCHED, check_switch
from vllm_dynin.training_ext.data.token_files import INDEX, TokenTable, swap_speech
from vllm_dynin.training_ext.records import Record

_MAX_ATTEMPTS = 100
"""Rows tried in place of a bad one."""

Measure = Callable[[Record], int]
"""Length of a record in tokens; `DoesNotFit` filters the record out, another ValueError is bad."""


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One data set of a mixture.

    Args:
        path: a folder that `vllm-dynin tokenize` wrote, or what `open_table` takes.
        weight: share of the direction's records, relative to its other sources; None is the number
            of rows, as if the sets lay one behind the other.
        adapter: what the columns mean, a name of `ADAPTERS`; token folders need none.
        columns: name the adapter knows → column of the data.
        thinking: the switch of its text answers, see `adapters.with_thinking`; None is what the
            adapter says. To train both forms, name a set twice and weigh the two sources.
        media_root: folder that media paths are relative to; by default that of the file.
        split: of a saved `DatasetDict`.
        name: for reports and keys; by default the last part of the path.
        is_shuffled: in a random order, another one in every epoch.

    Raises:
        ValueError: the weight is not positive.
    """

    path: str
    weight: float | None = 1.0
    adapter: str = "record"
    columns: Mapping[str, str] = field(default_factory=dict)
    thinking: bool | None = None
    media_root: str | None = None
    split: str = "train"
    name: str = ""
    is_shuffled: bool = True

    def __post_init__(self) -> None:
        if self.weight is not None and not self.weight > 0:
            raise ValueError(f"weight={self.weight} of {self.path} must be positive, or None")


class RecordTable(Protocol):
    """Rows of which each makes one or more records."""

    name: str
    block: int | None

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def read(self, index: int) -> Sequence[Callable[[], Record]]:
        """The records of a row, each made when it is called.

        Raises:
            BadSample: the row, or (when called) the record, cannot be used.
        """
        ...


class RowRecords:
    """Rows of any table, adapted and encoded when they are drawn.

    Args:
        table: the rows.
        spec: says what they mean.
        task: the direction they are wanted for.
        encoder: of their media.
    """

    def __init__(self, table: Table, spec: SourceSpec, task: Task, encoder: Encoder) -> None:
        self.name = spec.name or table.name
        self.block = table.block
        self._table, self._task, self._encoder = table, task, encoder
        self._adapter = find_adapter(spec.adapter, spec.columns, thinking=spec.thinking)

    def __len__(self) -> int:
        return len(self._table)

    def read(self, index: int) -> Sequence[Callable[[], Record]]:
        """As `RecordTable.read`."""
        pairs = self._adapter(self._table[index], self._task)
        for raw in pairs:
            if raw.task is not self._task:
                raise BadSample(
                    BadKind.FIELDS, f"a {raw.task.value} record where {self._task.value} is wanted"
                )
        return [lambda raw=raw: self._encoder(raw, self.name) for raw in pairs]  # type: ignore[misc]


class ReadyRecords:
    """Records that are codes already: a folder of tokens, or a list made in memory.

    Args:
        records: by index.
        name: for reports.
        task: the direction they are wanted for; speech and transcript serve both.
    """

    block: int | None = None

    def __init__(self, records: Sequence[Record] | TokenTable, name: str, task: Task) -> None:
        self.name = name
        self._records, self._task = records, task

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> Sequence[Callable[[], Record]]:
        """As `RecordTable.read`.

        Raises:
            ValueError: a record is for another direction: not one bad sample, but the wrong set.
        """
        record = swap_speech(self._records[index], self._task)
        return [lambda: replace(record, source=self.name)]


def open_records(spec: SourceSpec, task: Task, encoder: Encoder) -> RecordTable:
    """Open the data of a source.

    Raises:
        ValueError: nothing is there, or it is empty.
    """
    path = Path(spec.path)
    root = None if spec.media_root is None else Path(spec.media_root)
    opened: RecordTable
    if spec.thinking is not None and task not in SWITCHED:
        raise ValueError(
            f"thinking={spec.thinking} for {spec.path}: {task.value} has no thinking switch; leave "
            "it out"
        )
    if (path / INDEX).is_file():
        if spec.thinking is not None:
            raise ValueError(
                f"{spec.path} holds records whose switch is set; set it with `vllm-dynin tokenize "
                "--thinking`, and leave it out of the mixture"
            )
        tokens = TokenTable(path, task, spec.name or None)
        opened = ReadyRecords(tokens, tokens.name, task)
    else:
        table = open_table(path, media_root=root, split=spec.split)
        opened = RowRecords(table, spec, task, encoder)
    if not len(opened):
        raise ValueError(f"{spec.path} has no rows; leave it out of the mixture")
    return opened


class ShuffledSource:
    """The records of a table by position, epoch after epoch.

    A row that holds several records gives one of them, drawn anew in every epoch.

    Args:
        records: at least one row.
        task: part of the key of every draw, with name and seed.
        seed: of the mixture.
        log: counts good and bad samples.
        measure: also a test of whether a record fits.
        is_shuffled: False keeps the order of the rows.
    """

    def __init__(
        self,
        records: RecordTable,
        task: Task,
        seed: int,
        log: BadLog,
        measure: Measure,
        *,
        is_shuffled: bool = True,
    ) -> None:
        self.name, self.size = records.name, len(records)
        self._records, self._log, self._measure = records, log, measure
        self._key = (seed, task.value, self.name)
        self._is_shuffled = is_shuffled
        self._order: tuple[int, Callable[[int], int]] = (-1, int)

    def at(self, position: int) -> tuple[Record, int]:
        """The record at a position and its length; another row stands in for one that is bad.

        Every rank computes the same stand-in, and no other position moves.

        Raises:
            TooManyBad: too large a share of the rows is bad.
        """
        for attempt in range(_MAX_ATTEMPTS):
            epoch, place = divmod(position, self.size)
            if attempt:
                place = draw(*self._key, "instead of", position, attempt) % self.size
            index = self._index(epoch, place)
            key = f"row {index}"
            try:
                choices = self._records.read(index)
                which = draw(*self._key, "pair", epoch, index) % len(choices)
                record = choices[which]()
                key = record.key
                length = self._fitting(record)
            except BadSample as error:
                self._log.bad(BadEntry(self.name, key, error.kind.value, str(error)))
            else:
                self._log.good(self.name)
                return record, length
        self._log.check(self.name)
        raise TooManyBad(
            f"{self.name}: {_MAX_ATTEMPTS} rows in a row cannot be used "
            f"({self._log.describe(self.name)} bad; "
            f"{self._log.describe(self.name, is_filter=True)} filtered out); look at the data"
        )

    def _fitting(self, record: Record) -> int:
        check_switch(record.thinking, record.answer)
        try:
            return self._measure(record)
        except DoesNotFit as error:
            raise BadSample(BadKind.DOES_NOT_FIT, str(error)) from error
        except ValueError as error:
            raise BadSample(BadKind.FIELDS, str(error)) from error

    def _index(self, epoch: int, place: int) -> int:
        if not self._is_shuffled:
            return place
        if self._order[0] != epoch:
            key = (*self._key, "epoch", epoch)
            block = self._records.block
            order = (
                Permutation(self.size, *key)
                if block is None
                else BlockPermutation(self.size, block, *key)
            )
            self._order = (epoch, order)
        return self._order[1](place)
