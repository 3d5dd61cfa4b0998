"""A data set into token files: in parts, by several processes, restartable.

A part is a fixed range of rows. Its file holds its records and, in the header, the bad samples of
the range, and appears under its name only when it is whole; so whatever is killed when, the next
run goes on with the parts that are missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_dynin.training_ext.data.bad import BadEntry, BadKind, BadLog, write_entries
from vllm_dynin.training_ext.data.rows import Table
from vllm_dynin.training_ext.data.token_files import INDEX, TokenIndex, TokenPart, part_name
from vllm_dynin.training_ext.data.tokenize_job import (
    PartWorker,
    Progress,
    TokenizeJob,
    make_part,
    start_worker,
)

BAD_REPORT = "bad.jsonl"
FILTERED_REPORT = "filtered.jsonl"
_LOCK = ".lock"
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class TokenizeReport:
    """What came of a job.

    Args:
        num_rows: rows of the set.
        num_left_out: rows that fail a condition.
        num_records: records written for each direction.
        num_bad: damaged samples by kind.
        num_filtered: filtered samples by kind.
        num_parts: files of the set.
        num_parts_made: of these, made by this run.
        num_parts_to_come: of these, not made yet by other machines.
        seconds: this run took.
    """

    num_rows: int
    num_left_out: int
    num_records: Mapping[str, int]
    num_bad: Mapping[str, int]
    num_filtered: Mapping[str, int]
    num_parts: int
    num_parts_made: int
    num_parts_to_come: int
    seconds: float


def tokenize(
    job: TokenizeJob,
    *,
    workers: int = 1,
    machine: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> TokenizeReport:
    """Do a job, or what is left of it.

    Args:
        job: the job; a folder that holds part of another one is refused.
        workers: processes; 1 works in this one.
        machine: (i, n): every n-th part, from the i-th on, where n machines share a file system
            and each is given its own i. The last one to end finishes the set.
        progress: told of rows as they are done, finished parts of earlier runs at once.

    Raises:
        TooManyBad: more samples are bad, or filtered out, than allowed; `bad.jsonl` and
            `filtered.jsonl` list them, and the parts made so far stay.
        ValueError: data, checkpoint or folder do not fit.
    """
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")
    if not 0 <= machine[0] < machine[1]:
        raise ValueError(f"machine {machine[0]} of {machine[1]}: they are numbered from 0")
    started = time.monotonic()
    table = job.open()
    if not len(table):
        raise ValueError(f"{job.data} has no rows")
    num_parts = math.ceil(len(table) / job.rows_per_part)
    index = TokenIndex(identity=job.identity(len(table)), num_parts=num_parts)
    parts = [job.out / part_name(number, num_parts) for number in range(num_parts)]
    told = progress or (lambda _: None)
    job.out.mkdir(parents=True, exist_ok=True)
    with _locked(job.out, machine):
        _claim(job, index, is_alone=machine[1] == 1)
        log = BadLog(job.max_bad_share, job.max_filtered_share)
        there = [path for path in parts if path.exists()]
        missing = [
            number
            for number, path in enumerate(parts)
            if number % machine[1] == machine[0] and path not in there
        ]
        try:
            for path in there:
                told(_account(path, job.name, log))
            for number in _run(job, table, missing, workers, told):
                _account(parts[number], job.name, log)
            log.check()
        finally:
            for name, is_filter in ((BAD_REPORT, False), (FILTERED_REPORT, True)):
                listed = (e for e in _left_out(parts) if e.is_filter == is_filter)
                write_entries(job.out / name, listed)
        there = [path for path in parts if path.exists()]
        opened = [TokenPart(path) for path in there]
        counts = tuple(part.count() for part in opened)
        if len(there) == num_parts:
            replace(index, num_records=counts).write(job.out)
    return TokenizeReport(
        num_rows=len(table),
        num_left_out=sum(int(part.metadata["left_out"]) for part in opened),
        num_records=dict(sum((Counter(part) for part in counts), Counter())),
        num_bad=_by_kind(log, is_filter=False),
        num_filtered=_by_kind(log, is_filter=True),
        num_parts=num_parts,
        num_parts_made=len(missing),
        num_parts_to_come=num_parts - len(there),
        seconds=time.monotonic() - started,
    )


def _run(
    job: TokenizeJob, table: Table, missing: list[int], workers: int, progress: Progress
) -> Iterator[int]:
    """Make parts, yielding each when it is done."""
    if workers == 1 or len(missing) < 2:
        worker = PartWorker(job, table) if missing else None
        for number in missing:
            assert worker is not None
            worker.make(number, progress)
            yield number
        return
    # Not forked: codecs may be on a GPU, and libraries have threads.
    context = multiprocessing.get_context("spawn")
    num_started, num_done = context.Value("q", 0), context.Value("q", 0)
    told = 0
    with ProcessPoolExecutor(
        min(workers, len(missing)), context, start_worker, (job, workers, num_started, num_done)
    ) as pool:
        waiting: dict[Future[None], int] = {
            pool.submit(make_part, number): number for number in missing
        }
        try:
            while waiting:
                done, _ = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
                progress(num_done.value - told)
                told = num_done.value
                for future in done:
                    future.result()
                    yield waiting.pop(future)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _by_kind(log: BadLog, *, is_filter: bool) -> dict[str, int]:
    return {
        kind: count
        for (_, kind), count in sorted(log.num_bad.items())
        if BadKind(kind).is_filter == is_filter
    }


def _account(path: Path, name: str, log: BadLog) -> int:
    """Count the samples of a finished part; returns its rows."""
    part = TokenPart(path)
    log.good(name, len(part))
    for entry in json.loads(part.metadata["bad"]):
        log.bad(BadEntry(**entry))
    return int(part.metadata["rows"])


def _left_out(parts: list[Path]) -> Iterator[BadEntry]:
    for path in parts:
        if path.exists():
            yield from (BadEntry(**e) for e in json.loads(TokenPart(path).metadata["bad"]))


def _claim(job: TokenizeJob, index: TokenIndex, *, is_alone: bool) -> None:
    """Make the folder this job's, or check that it is."""
    if not (job.out / INDEX).exists():
        if any(job.out.glob("tokens-*.safetensors")):
            raise ValueError(f"{job.out} holds token files without {INDEX}; delete the folder")
        index.write(job.out)
        return
    found = TokenIndex.read(job.out)
    differing = [
        name for name, value in index.identity.items() if found.identity.get(name) != value
    ]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{job.out} holds tokens of another job: {name} is {found.identity.get(name)!r} there "
            f"and {index.identity[name]!r} here; take another folder for --out, or delete it"
        )
    if is_alone:  # else they may be those of another machine
        for left in job.out.glob("*.tmp"):
            left.unlink()


@contextlib.contextmanager
def _locked(folder: Path, machine: tuple[int, int]) -> Iterator[None]:
    """Alone in the folder, or the only one with this number among several machines."""
    is_alone = machine[1] == 1
    own = _LOCK if is_alone else f"{_LOCK}-{machine[0]}-of-{machine[1]}"
    with open(folder / _LOCK, "w") as whole, open(folder / own, "w") as part:
        try:
            fcntl.flock(whole, (fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            if not is_alone:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process is writing to {folder}; wait for it or take another --out"
            ) from error
        yield
