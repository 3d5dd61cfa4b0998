"""What a step did, and the files it is written to."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.directions import DirectionObjective
from vllm_dynin.training_ext.losses import Losses, Noised
from vllm_dynin.training_ext.trainer.parallel import Parallel

LOG_FILE = "log.jsonl"
TASKS = tuple(Task)
BUCKET_EDGES = (0.2, 0.4, 0.6, 0.8)
"""Masking probabilities that separate the five buckets of the logged cross-entropy."""
_BUCKETS = len(BUCKET_EDGES) + 1
_EDGES = torch.tensor(BUCKET_EDGES)


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """One direction in one step, over all micro-batches and ranks.

    Args:
        loss: as its normalisation defines it, before its coefficient.
        num_supervised: positions the loss looked at.
        nll: mean cross-entropy of the answers' positions, their EOS left out, by masking
            probability: at most 0.2, 0.4, …, 1.0; None where a bucket is empty.
        nll_end: of the EOS, over all probabilities; None without any.
        num_ends: EOS among the supervised positions.
    """

    loss: float
    num_supervised: int
    nll: tuple[float | None, ...] = ()
    nll_end: float | None = None
    num_ends: int = 0


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one optimiser step did.

    Args:
        step: counted from 1.
        loss: of the step's rows, coefficients applied, before the update.
        grad_norm: before clipping; not a number where DeepSpeed does not tell.
        learning_rate: that was used.
        num_supervised: positions the loss looked at.
        num_positions: positions that went through the model over all ranks; padding included,
            unless rows are packed.
        seconds: wall clock of the step.
        data_seconds: of these, spent on getting and laying out its rows, on this process.
        peak_bytes: most memory this process has had in tensors on its GPU, or resident without one.
        is_stopped: some process was asked to end; the run is saved and ends after this step.
        tasks: the same for each direction.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    num_supervised: int
    num_positions: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    peak_bytes: int = 0
    is_stopped: bool = False
    tasks: Mapping[Task, TaskReport] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """Flat names and numbers, as they are logged."""
        values: dict[str, float] = {
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate,
            "num_supervised": self.num_supervised,
            "num_positions": self.num_positions,
            "seconds": self.seconds,
            "data_seconds": self.data_seconds,
            "positions_per_second": self.num_positions / self.seconds if self.seconds else 0.0,
            "peak_gib": self.peak_bytes / 2**30,
        }
        for task, report in self.tasks.items():
            values[f"loss/{task}"] = report.loss
            values[f"num_supervised/{task}"] = report.num_supervised
            if report.nll_end is not None:
                values[f"num_ends/{task}"] = report.num_ends
                values[f"nll_end/{task}"] = report.nll_end
            for upper, nll in zip((*BUCKET_EDGES, 1.0), report.nll, strict=False):
                if nll is not None:
                    values[f"nll/{task}/p{upper:g}"] = nll
        return values


class RunLog:
    """`log.jsonl` and TensorBoard events of a run; only the main process has one.

    Args:
        folder: of the run.
        resumed_at: steps done when the run was resumed. What was logged behind them by the run
            that was cut off is dropped, so the log of a resumed run has every step once.
    """

    def __init__(self, folder: Path, resumed_at: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG_FILE
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= resumed_at]
        work = path.with_suffix(".tmp")
        work.write_text("".join(kept), encoding="utf-8")
        os.replace(work, path)
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(
            str(folder / "tensorboard"), purge_step=resumed_at + 1 if resumed_at else None
        )

    def write(
        self, step: int, scalars: Mapping[str, float], texts: Mapping[str, Any] | None = None
    ) -> None:
        """Add one line, and the same to TensorBoard.

        Args:
            step: optimiser steps done.
            scalars: names and numbers.
            texts: what is no number, e.g. generated samples; as JSON.
        """
        texts = texts or {}
        values = {"step": step, **scalars, **texts}
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)
        for name, text in texts.items():
            as_text = text if isinstance(text, str) else json.dumps(text, indent=1)
            self._events.add_text(name, as_text, step)

    def close(self) -> None:
        """Write out what is held."""
        self._file.close()
        self._events.close()


def _lines(path: Path) -> list[str]:
    """Whole lines of the log; a run that was killed may have left half a line at its end."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


class Tally:
    """Adds up what the micro-batches of one step report.

    Numbers stay tensors until the end, so that a GPU is not waited for in between.

    Args:
        objectives: of the directions, for their coefficients.
        weights: of the directions in this step, beside their coefficients; None is 1.
        is_packed: whether padding is left out.
    """

    def __init__(
        self,
        objectives: Mapping[Task, DirectionObjective],
        weights: Mapping[Task, float] | None = None,
        *,
        is_packed: bool = False,
    ) -> None:
        self._objectives, self._weights, self._is_packed = objectives, weights, is_packed
        self._parts: list[tuple[Task, Noised, Tensor, Tensor]] = []
        self._num_positions = 0

    def add(self, noised: Mapping[Task, Noised], losses: Losses) -> None:
        """Add one micro-batch."""
        for task, part in noised.items():
            self._parts.append((task, part, losses.per_task[task], losses.nll[task]))
            visible_BT = part.is_visible_BT if self._is_packed else None
            count = part.ids_BT.numel() if visible_BT is None else int(visible_BT.sum())
            self._num_positions += count

    def report(
        self,
        parallel: Parallel,
        *,
        step: int,
        grad_norm: float,
        learning_rate: float,
        is_stopped: bool = False,
    ) -> StepReport:
        """Sum over ranks and put together; every rank gets the same.

        Args:
            parallel: the processes.
            step: counted from 1.
            grad_norm: of the step.
            learning_rate: of the step.
            is_stopped: this process was asked to end: the report says so on every rank.
        """
        table = torch.zeros((len(TASKS), 2 * _BUCKETS + 4), dtype=torch.double)
        for task, part, loss, nll_N in self._parts:
            row = table[TASKS.index(task)]
            bucket_N = torch.bucketize(part.probability_N, _EDGES)
            nll_N, is_end_N = nll_N.double().cpu(), part.is_end_N
            bucket_N = bucket_N[~is_end_N]
            row[0] += float(loss)
            row[1 : 1 + _BUCKETS] += torch.bincount(bucket_N, minlength=_BUCKETS)
            row[1 + _BUCKETS : -3].index_add_(0, bucket_N, nll_N[~is_end_N])
            row[-3] += is_end_N.sum()
            row[-2] += nll_N[is_end_N].sum()
            row[-1] = 1
        others = torch.tensor([self._num_positions, is_stopped], dtype=torch.double)
        flat = parallel.sum_over_ranks(torch.cat((table.flatten(), others)))
        table = flat[:-2].view_as(table)
        tasks, total, supervised = {}, 0.0, 0
        for task, row in zip(TASKS, table.tolist(), strict=True):
            if not row[-1]:
                continue
            counts, sums = row[1 : 1 + _BUCKETS], row[1 + _BUCKETS : -3]
            num_ends = int(row[-3])
            tasks[task] = TaskReport(
                loss=row[0],
                num_supervised=int(sum(counts)) + num_ends,
                nll=tuple(s / c if c else None for s, c in zip(sums, counts, strict=True)),
                nll_end=row[-2] / num_ends if num_ends else None,
                num_ends=num_ends,
            )
            weight = 1.0 if self._weights is None else self._weights[task]
            total += self._objectives[task].coefficient * weight * row[0]
            supervised += int(sum(counts)) + num_ends
        return StepReport(
            step=step,
            loss=total,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            num_supervised=supervised,
            num_positions=int(flat[-2]),
            is_stopped=bool(flat[-1]),
            tasks=tasks,
        )


def peak_bytes() -> int:
    """Most memory this process has had: in tensors on its GPU, or resident where it has none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
