"""A run in a folder: log, checkpoints, validation, resuming, and the checkpoint at its end.

run/
    settings.txt   the resolved configuration, one setting a line
    log.jsonl      a line every few steps; the same in tensorboard/
    checkpoints/   see `checkpoints`
    final/         the trained model in bfloat16, to be served; adapters are merged into it
    adapter/       where adapters were trained, in PEFT's format
"""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from vllm_dynin.training_ext.lora import merge_adapter
from vllm_dynin.training_ext.trainer import checkpoints
from vllm_dynin.training_ext.trainer.checkpoints import whole_checkpoints
from vllm_dynin.training_ext.trainer.export import export
from vllm_dynin.training_ext.trainer.feed import DataFailed
from vllm_dynin.training_ext.trainer.loop import Trainer
from vllm_dynin.training_ext.trainer.report import RunLog, StepReport
from vllm_dynin.training_ext.trainer.validation import Generated, Validator

logger = logging.getLogger(__name__)

SETTINGS_FILE = "settings.txt"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is kept and watched; nothing here changes what is trained.

    Args:
        save_every: steps between checkpoints; the last step is always saved.
        keep: checkpoints that stay; 0 keeps all.
        log_every: steps between lines of the log; a line is of its step alone.
        validate_every: steps between validations; None validates at the end only.

    Raises:
        ValueError: a number is out of range.
    """

    save_every: int = 1000
    keep: int = 2
    log_every: int = 10
    validate_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("save_every", "log_every", "validate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.keep < 0:
            raise ValueError(f"keep={self.keep} must be 0 or more")


def run(
    trainer: Trainer,
    folder: Path,
    options: RunOptions,
    *,
    companions: Any = None,
    validator: Validator | None = None,
    settings: str = "",
    is_resumed: bool = False,
    on_step: Callable[[StepReport], None] = lambda report: None,
    extra: Callable[[], Mapping[str, float]] = dict,
) -> Path:
    """Train to the end; every rank calls this.

    Args:
        trainer: with the weights it starts from.
        folder: of the run.
        options: see `RunOptions`.
        companions: what goes beside the weights of every checkpoint; anything with
            `save_pretrained(folder)`, see `export.Companions`.
        validator: held-out records, or None.
        settings: the resolved configuration, to be kept in the folder.
        is_resumed: go on from the last whole checkpoint of the folder, or begin if there is none,
            so that a job that is started again and again has one command.
        on_step: called after every step.
        extra: more names and numbers for each line of the log.

    Returns:
        The folder of the trained model.

    Raises:
        ValueError: the folder holds a run and this one is not resumed, or it cannot be resumed.
        DataFailed: the data ended the run, which was saved before.
        FloatingPointError: likewise, the loss or its gradient was not finite.
        Stopped: the run was asked to end by SIGTERM, and saved.

        One process saves at any other error too, unless it struck in the middle of an update.
    """
    kept = folder / "checkpoints"
    _begin(trainer, folder, is_resumed=is_resumed)
    if trainer.parallel.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS_FILE).write_text(settings + "\n", encoding="utf-8")
    log = RunLog(folder, trainer.step) if trainer.parallel.is_main else None
    last = trainer.config.num_steps

    def save() -> None:
        if trainer.step and not _is_saved(kept, trainer.step):
            trainer.save(kept, tokenizer=companions, keep=options.keep)
            logger.info("saved at step %d", trainer.step)

    try:
        with _stopping(trainer):
            for report in trainer.steps():
                is_last = report.step == last
                if log is not None and (is_last or report.step % options.log_every == 0):
                    log.write(report.step, {**report.scalars(), **extra()})
                every = options.validate_every
                if validator is not None and (is_last or (every and report.step % every == 0)):
                    _validate(trainer, validator, report.step, log)
                if is_last or report.is_stopped or report.step % options.save_every == 0:
                    trainer.save(kept, tokenizer=companions, keep=options.keep)
                on_step(report)
                if report.is_stopped and not is_last:
                    raise Stopped(
                        f"asked to end; saved at step {report.step} of {last}, to be resumed"
                    )
    except Stopped:
        raise
    except (DataFailed, FloatingPointError):  # every rank is here, with whole weights
        save()
        raise
    except BaseException:
        # The others may be in the middle of a step, and a checkpoint takes all of them.
        if trainer.parallel.world_size == 1 and not trainer.is_updating:
            save()
        raise
    finally:
        if log is not None:
            log.close()
    final = folder / "final"
    if trainer.parallel.is_main:
        source = whole_checkpoints(kept)[-1]
        if (source / checkpoints.ADAPTER).is_dir():
            _leave_adapter(trainer, source / checkpoints.ADAPTER, folder, companions)
        else:
            export(source / ("model" if trainer.average is None else "ema"), final, replace=True)
    trainer.parallel.barrier()
    return final


class Stopped(RuntimeError):
    """The run was asked to end (SIGTERM), and was saved."""


@contextmanager
def _stopping(trainer: Trainer) -> Iterator[None]:
    """SIGTERM ends the run behind the step in progress, on every rank, with a checkpoint.

    What a scheduler sends before it takes a machine away. Signals reach the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        trainer.is_stopping = True

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_saved(kept: Path, step: int) -> bool:
    return any(path.name == checkpoints.name_of(step) for path in whole_checkpoints(kept))


def _begin(trainer: Trainer, folder: Path, *, is_resumed: bool) -> None:
    found = whole_checkpoints(folder / "checkpoints")
    trainer.parallel.barrier()  # nobody writes before everybody has looked
    if not found:
        if is_resumed:
            logger.info("%s holds no whole checkpoint; the run begins at its first step", folder)
        return
    if not is_resumed:
        raise ValueError(
            f"{folder} holds a run at step {int(found[-1].name.removeprefix('step-'))}; resume it, "
            "or choose another folder"
        )
    trainer.resume(found[-1])
    logger.info("resumed %s at step %d", folder, trainer.step)


def _leave_adapter(trainer: Trainer, adapter: Path, folder: Path, companions: Any) -> None:
    """The adapter on its own, and merged into the checkpoint it belongs to."""
    shutil.rmtree(folder / checkpoints.ADAPTER, ignore_errors=True)
    shutil.copytree(adapter, folder / checkpoints.ADAPTER)
    if trainer.base is not None:
        given = {"dtype": torch.bfloat16, "companions": companions, "replace": True}
        merge_adapter(trainer.base, adapter, folder / "final", **given)


def _validate(trainer: Trainer, validator: Validator, step: int, log: RunLog | None) -> None:
    likelihood = validator.likelihood(trainer)
    answers = validator.generate(trainer)
    if log is None:
        return
    by_task: dict[str, list[Generated]] = {}
    for answer in answers:
        by_task.setdefault(answer.task.value, []).append(answer)
    right = {
        f"validation/right/{task}": sum(one.is_right for one in given) / len(given)
        for task, given in by_task.items()
    }
    texts = {
        f"validation/samples/{task}": [
            {"prompt": one.prompt, "expected": one.expected, "given": one.given} for one in given
        ]
        for task, given in by_task.items()
    }
    log.write(step, likelihood | right, texts)
