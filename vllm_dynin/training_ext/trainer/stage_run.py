"""From a stage, a checkpoint and data to a trainer: everything `vllm-dynin train` puts together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vllm_dynin import checkpoint
from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.processors.text_tokenizer import load_tokenizer
from vllm_dynin.reference.backbone import LLaDA, load_reference
from vllm_dynin.training_ext import settings
from vllm_dynin.training_ext.data import (
    MixtureConfig,
    Schedule,
    TaskMix,
    open_mixture,
    sample_length,
)
from vllm_dynin.training_ext.data.bad import BadLog, write_entries
from vllm_dynin.training_ext.records import Record, SampleContext
from vllm_dynin.training_ext.stages import StageConfig
from vllm_dynin.training_ext.trainer.feed import RecordFeed
from vllm_dynin.training_ext.trainer.loop import Trainer
from vllm_dynin.training_ext.trainer.parallel import Parallel
from vllm_dynin.training_ext.trainer.validation import Validator

# What a direction needs beside text: image codes, speech units.
_NEEDS_IMAGES = {
    Task.IMAGE_TO_TEXT,
    Task.VIDEO_TO_TEXT,
    Task.TEXT_TO_IMAGE,
    Task.IMAGE_TO_IMAGE,
    Task.VIDEO_TO_SPEECH,
}
_NEEDS_SPEECH = {
    Task.SPEECH_TO_TEXT,
    Task.TEXT_TO_SPEECH,
    Task.SPEECH_TO_SPEECH,
    Task.VIDEO_TO_SPEECH,
}


@dataclass(frozen=True)
class StageRun:
    """A stage that is ready to be trained.

    Args:
        trainer: with the weights it starts from.
        bad: counts of the samples that its data leave out, and why.
    """

    trainer: Trainer
    bad: BadLog

    def skipped(self) -> dict[str, float]:
        """Samples of each source that this rank has left out, damaged and filtered, for the log."""
        counts: dict[str, float] = {}
        for source in sorted({source for source, _ in self.bad.num_bad}):
            counts[f"skipped/{source}"] = self.bad.bad_of(source)
            counts[f"filtered/{source}"] = self.bad.filtered_of(source)
        return {name: count for name, count in counts.items() if count}

    def write_skipped(self, folder: Path) -> None:
        """List them with their reasons, files for each rank that has met any."""
        rank = self.trainer.parallel.rank
        for name, entries in (("skipped", self.bad.entries), ("filtered", self.bad.filtered)):
            if entries:
                folder.mkdir(parents=True, exist_ok=True)
                write_entries(folder / f"{name}-{rank:05d}.jsonl", entries)


def prepare_stage(stage: StageConfig, start: Path, data: Mapping[str, Any]) -> StageRun:
    """A stage with checkpoint and data.

    Args:
        stage: what is trained, and how.
        start: checkpoint folder: of this family, so MMaDA and LLaDA as well.
        data: see `mixture_config`.

    Raises:
        ValueError: checkpoint, data and stage do not fit together.
    """
    config = _table_config(start)
    check_modalities(stage, config, start)
    parallel = Parallel(stage.train)
    context = _context(stage, config, start)
    mixed = mixture_config(stage, data, parallel.world_size)
    mixture = open_mixture(
        mixed,
        rank=parallel.rank,
        world_size=parallel.world_size,
        measure=sample_length(context),
    )
    feed = RecordFeed(mixture, context, stage.train, parallel.place)
    identity = run_identity(stage, mixed, parallel.world_size) | mixture.identity()
    if stage.train.lora_rank is not None:
        identity["base"] = _fingerprint(start)
    given = (feed, stage.objectives, stage.train, parallel, identity)
    if parallel.is_deepspeed:  # takes the weights apart when it is set up, so they come first
        model = load_reference(start, torch.float32)
        trainer = Trainer(model, *given)
        return StageRun(trainer, mixture.bad)
    with torch.device("meta"):
        model = LLaDA(config, config.vocab_size)
    trainer = Trainer(model, *given)
    trainer.load_weights(start)
    return StageRun(trainer, mixture.bad)


_NOTES = ("sources", "million_pairs", "resolution", "num_frames", "max_seconds", "max_units")
"""Settings of a direction that are about its data before training."""


def run_identity(stage: StageConfig, data: MixtureConfig, world_size: int) -> dict[str, Any]:
    """What of a stage and its data changes the mathematics of a run, by name, as JSON values.

    Args:
        stage: its settings for each direction count, and how many rows a step has.
        data: how the sources are read; their sizes and weights are the mixture's to say.
        world_size: processes; rows that are given for each rank are counted over all.
    """
    found: dict[str, Any] = {"parity": stage.parity.value, "has_even_seats": stage.has_even_seats}
    for task, one in stage.tasks.items():
        for name, value in settings.flatten(one).items():
            if name not in _NOTES:
                found[f"tasks.{task.value}.{name}"] = value
        if one.rows is None:
            found["global_batch"] = stage.global_batch
        else:
            found[f"tasks.{task.value}.rows"] = one.rows * world_size
        found[f"data.{task.value}.read"] = [
            [spec.adapter, dict(spec.columns), spec.thinking, spec.split, spec.is_shuffled]
            for spec in data.tasks[task].sources
        ]
    return found


def stage_validator(
    stage: StageConfig, start: Path, data: Mapping[str, Any], *, num_records: int, **options: Any
) -> Validator:
    """Held-out records of a stage's directions.

    Args:
        stage: as trained.
        start: the checkpoint it starts from.
        data: as for `mixture_config`, with other files; directions may be missing.
        num_records: of each direction.
        options: of `Validator`.
    """
    context = _context(stage, _table_config(start), start)
    records: dict[Task, list[Record]] = {}
    for task in stage.tasks:
        if task.value not in data.get("tasks", {}):
            continue
        given = {**data, "tasks": {task.value: data["tasks"][task.value] | {"rows": num_records}}}
        records[task] = open_mixture(given, measure=sample_length(context)).next_step()[task]
    return Validator(records, context, **options)


def read_data(file: Path) -> dict[str, Any]:
    """Read the JSON file that names a run's data; paths in it are relative to its folder.

    Raises:
        ValueError: it is missing, or not of this form.
    """
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for mix in values["tasks"].values():
            for source in mix["sources"]:
                for name in ("path", "media_root"):
                    if source.get(name) is not None:
                        source[name] = str(file.parent / source[name])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} names no data ({type(error).__name__}: {error}); it is "
            '{"tasks": {"t2i": {"sources": [{"path": …}]}, …}}'
        ) from error
    return values


def mixture_config(stage: StageConfig, data: Mapping[str, Any], world_size: int) -> MixtureConfig:
    """The sources that a file names, in the amounts that the stage says.

    Args:
        stage: how much of each direction a step takes.
        data: values of `MixtureConfig.from_dict` without amounts: `{"tasks": {"t2i": {"sources":
            [{"path": …}]}}}`.
        world_size: processes; a step's rows are shared out over them.

    Raises:
        ValueError: a direction of the stage has no source, one has amounts of its own, or the
            batch does not divide over the processes.
    """
    tasks = data.get("tasks", {})
    missing = [task.value for task in stage.tasks if task.value not in tasks]
    if missing:
        raise ValueError(
            f"{stage.name} trains {', '.join(missing)}, for which the data name no source; add "
            "them, or leave directions out with --only"
        )
    for name, mix in tasks.items():
        if set(mix) != {"sources"}:
            raise ValueError(
                f"{name} of the data sets {', '.join(sorted(set(mix) - {'sources'}))}; how much of "
                f"a direction a step takes is a setting of the stage (tasks.{name}.…)"
            )
    as_shares = all(task.share is not None for task in stage.tasks.values())
    if as_shares and stage.global_batch % world_size:
        raise ValueError(
            f"global_batch={stage.global_batch} does not divide over {world_size} processes; set "
            "it to a multiple"
        )
    amounts = {
        task: Schedule(weight=one.share)
        if as_shares
        else Schedule(rows=one.rows, every=one.every, phase=one.phase)
        for task, one in stage.tasks.items()
    }
    # Parsed with an amount in place, because the file has none.
    whole = {name: {"rows": 1, **mix} for name, mix in tasks.items()}
    parsed = MixtureConfig.from_dict({**data, "tasks": whole, "rows_per_step": None})
    return MixtureConfig(
        tasks={
            task: TaskMix(schedule=amount, sources=parsed.tasks[task].sources)
            for task, amount in amounts.items()
        },
        seed=parsed.seed,
        max_bad_share=parsed.max_bad_share,
        max_filtered_share=parsed.max_filtered_share,
        rows_per_step=stage.global_batch // world_size if as_shares else None,
        is_even=as_shares and stage.has_even_seats,
    )


def check_modalities(stage: StageConfig, config: LLaDAConfig, start: Path) -> None:
    """Whether a checkpoint has the rows that a stage's directions need.

    Raises:
        ValueError: it has no image codes or no speech units.
    """
    for needed, size, what, option in (
        (_NEEDS_IMAGES, config.image_codebook_size, "image codes", "--image-codes 8192"),
        (_NEEDS_SPEECH, config.speech_codebook_size, "speech units", "--speech-units 4096"),
    ):
        tasks = [task.value for task in stage.tasks if task in needed]
        if tasks and not size:
            raise ValueError(
                f"{start} ({config.model_type}) has no {what}, which {', '.join(tasks)} need; add "
                f"them with `vllm-dynin extend-vocab {start} OUT {option}` and start from OUT"
            )


def _fingerprint(start: Path) -> str:
    """Of a checkpoint's files, from their sizes and beginnings: adapters belong to one."""
    digest = hashlib.sha256()
    for file in checkpoint.tensor_files(start):
        with file.open("rb") as stream:
            digest.update(f"{file.name} {file.stat().st_size} ".encode())
            digest.update(stream.read(1 << 20))
    return digest.hexdigest()


def _table_config(start: Path) -> LLaDAConfig:
    config = checkpoint.load_config(start)
    config.vocab_size = checkpoint.check_tensors(checkpoint.tensor_shapes(start), config)
    return config


def _context(stage: StageConfig, config: LLaDAConfig, start: Path) -> SampleContext:
    return stage.context(config, load_tokenizer(str(start), config.vocabulary))
