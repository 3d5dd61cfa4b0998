"""One job of `vllm-dynin tokenize`: what it is, and the worker that makes its parts."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from vllm_dynin.canvas import Task
from vllm_dynin.checkpoint import load_config
from vllm_dynin.processors.media import CodecFolders, MediaCodecs
from vllm_dynin.training_ext.data.adapters import find_adapter
from vllm_dynin.training_ext.data.bad import (
    MAX_BAD_SHARE,
    MAX_FILTERED_SHARE,
    BadEntry,
    BadKind,
    BadSample,
)
from vllm_dynin.training_ext.data.encode import EncodeOptions, Encoder, codec_digest
from vllm_dynin.training_ext.data.rows import Row, Table
from vllm_dynin.training_ext.data.tables import data_files, open_table
from vllm_dynin.training_ext.data.token_files import part_name, write_part
from vllm_dynin.training_ext.data.where import Condition
from vllm_dynin.training_ext.records import Record

Progress = Callable[[int], None]
"""Is told of rows that are done."""


@dataclass(frozen=True, kw_only=True)
class TokenizeJob:
    """What is to be tokenised, and how.

    Args:
        data: as `open_table` takes it.
        out: folder of the token files; created where needed.
        checkpoint: folder whose codecs are used; None where there are no media.
        task: the direction; None where every row names its own (adapter `record`).
        adapter: what the columns mean.
        columns: name the adapter knows → column of the data.
        thinking: the switch of text answers, see `adapters.with_thinking`.
        where: conditions on the columns, as `Condition.parse` takes them; rows that fail one are
            left out.
        media_root: folder that media paths are relative to; by default that of the file.
        split: of a saved `DatasetDict`.
        options: sizes and limits; None takes the sizes the checkpoint serves with.
        rows_per_part: rows of a file; what is lost when a run is killed is a part per worker.
        max_bad_share: damaged samples allowed, as a share.
        max_filtered_share: samples allowed that are too long or of no use, as a share.
        device: where the codecs run; of several, joined by commas, each worker takes one.

    Raises:
        ValueError: a number is out of range, the adapter is unknown, or the direction is missing.
    """

    data: str
    out: Path
    checkpoint: str | None = None
    task: Task | None = None
    adapter: str = "record"
    columns: Mapping[str, str] = field(default_factory=dict)
    thinking: bool | None = None
    where: tuple[str, ...] = ()
    media_root: str | None = None
    split: str = "train"
    options: EncodeOptions | None = None
    rows_per_part: int = 1000
    max_bad_share: float = MAX_BAD_SHARE
    max_filtered_share: float = MAX_FILTERED_SHARE
    device: str = "cpu"

    def __post_init__(self) -> None:
        find_adapter(self.adapter)
        for text in self.where:
            Condition.parse(text)
        if self.task is None and self.adapter != "record":
            raise ValueError(f"adapter {self.adapter!r} needs a task: the direction of its rows")
        if self.rows_per_part < 1:
            raise ValueError(f"rows_per_part={self.rows_per_part} must be at least 1")

    @property
    def name(self) -> str:
        """Of the set, for reports."""
        return Path(self.data).name

    @property
    def devices(self) -> list[str]:
        """Where the codecs run."""
        return self.device.split(",")

    def open(self) -> Table:
        """The rows."""
        root = None if self.media_root is None else Path(self.media_root)
        return open_table(self.data, media_root=root, split=self.split)

    def encode_options(self) -> EncodeOptions:
        """The sizes and limits that apply."""
        if self.options is not None:
            return self.options
        if self.checkpoint is None:
            return EncodeOptions()
        return EncodeOptions.of_config(load_config(self.checkpoint))

    def codecs(self) -> MediaCodecs | None:
        """The codecs of the checkpoint, not loaded yet."""
        if self.checkpoint is None:
            return None
        config = load_config(self.checkpoint)
        folders = CodecFolders.find(self.checkpoint, config)
        return MediaCodecs(folders, torch.device(self.devices[0]), config.vocabulary)

    def identity(self, num_rows: int) -> dict[str, Any]:
        """All that the tokens depend on, as JSON values. Of the data: names, sizes and dates."""
        codecs = None
        if self.checkpoint is not None:
            codecs = codec_digest(CodecFolders.find(self.checkpoint, load_config(self.checkpoint)))
        stats = [(file.name, file.stat()) for file in data_files(self.data)]
        return {
            "data": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
            "num_rows": num_rows,
            "rows_per_part": self.rows_per_part,
            "task": None if self.task is None else self.task.value,
            "adapter": self.adapter,
            "columns": dict(self.columns),
            **({} if self.thinking is None else {"thinking": self.thinking}),
            "where": list(self.where),
            "split": self.split,
            "options": asdict(self.encode_options()),
            "codecs": codecs,
        }


class PartWorker:
    """Makes parts, one after the other, with codecs that are loaded once.

    Args:
        job: the job.
        table: its rows.
    """

    def __init__(self, job: TokenizeJob, table: Table) -> None:
        self._job, self._table = job, table
        self._adapter = find_adapter(job.adapter, job.columns, thinking=job.thinking)
        self._conditions = [Condition.parse(text) for text in job.where]
        self._encoder = Encoder(job.codecs(), job.encode_options())

    def make(self, number: int, progress: Progress) -> None:
        """Make the file of a part."""
        job, size = self._job, len(self._table)
        start = number * job.rows_per_part
        stop = min(start + job.rows_per_part, size)
        records: list[Record] = []
        bad: list[BadEntry] = []
        num_left_out = 0
        for index in range(start, stop):
            num_left_out += not self._add(index, records, bad)
            progress(1)
        path = job.out / part_name(number, math.ceil(size / job.rows_per_part))
        metadata = {
            "rows": str(stop - start),
            "left_out": str(num_left_out),
            "bad": json.dumps([asdict(entry) for entry in bad]),
        }
        write_part(path, records, metadata)

    def _add(self, index: int, records: list[Record], bad: list[BadEntry]) -> bool:
        """The records of a row, or an entry for each that is bad; False where it is left out."""
        name, key = self._job.name, f"row {index}"
        try:
            row = self._table[index]
            key = row.key
            if not all(condition.holds(row) for condition in self._conditions):
                return False
            pairs = self._adapter(row, self._task(row))
        except BadSample as error:
            bad.append(BadEntry(name, key, error.kind.value, str(error)))
            return True
        for raw in pairs:
            try:
                records.append(self._encoder(raw, name))
            except BadSample as error:
                bad.append(BadEntry(name, raw.key, error.kind.value, str(error)))
        return True

    def _task(self, row: Row) -> Task:
        if self._job.task is not None:
            return self._job.task
        try:
            return Task(str(row.fields.get("task")))
        except ValueError as error:
            raise BadSample(
                BadKind.FIELDS, f"task={row.fields.get('task')!r} in the row, and none for the set"
            ) from error


_worker: PartWorker | None = None
_num_done: Any = None


def start_worker(job: TokenizeJob, workers: int, num_started: Any, num_done: Any) -> None:
    """Set up a process of a pool; the counters are of all of them: processes, and rows done."""
    global _worker, _num_done
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A parent that is killed closes no queue of this worker, which would wait for ever.
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    job = replace(job, device=next_device(job, num_started))
    _worker, _num_done = PartWorker(job, job.open()), num_done


def next_device(job: TokenizeJob, num_started: Any) -> str:
    """The device of the process that starts now, which is counted."""
    with num_started.get_lock():
        device = job.devices[num_started.value % len(job.devices)]
        num_started.value += 1
    return device


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def make_part(number: int) -> None:
    """Make a part in such a process."""
    assert _worker is not None

    def done(count: int) -> None:
        with _num_done.get_lock():
            _num_done.value += count

    _worker.make(number, done)
