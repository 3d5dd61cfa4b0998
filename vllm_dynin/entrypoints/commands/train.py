"""`vllm-dynin train`: train a stage of the recipe, or one of the tiny models from nothing."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_dynin.training_ext.stages import StageConfig
    from vllm_dynin.training_ext.trainer import StepReport

SFT = "sft"
"""The recipe whose settings come from its data."""
TINY = ("tiny-text", "tiny-long", "dynin-tiny")
"""Recipes that need neither a checkpoint nor data; their options are their own."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vllm-dynin train",
        description=__doc__,
        epilog="Several processes: accelerate launch --config_file FILE -m "
        "vllm_dynin.entrypoints.cli train … (docs/trainer.md). Tiny models: vllm-dynin train "
        f"{{{','.join(TINY)}}} --help",
    )
    parser.add_argument(
        "recipe",
        help="sft to fine-tune on your data; or stage1, stage2, stage3 or debug, with :release for "
        "the released settings",
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="name=value",
        help="settings to change, see vllm-dynin stages",
    )
    paths = parser.add_argument_group("what it works on")
    paths.add_argument(
        "--from", dest="start", type=Path, metavar="DIR", help="checkpoint to start from"
    )
    paths.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="JSON that names the data; for sft also a file of rows or a folder of token files",
    )
    paths.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run (sft: default ./sft)"
    )
    paths.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    paths.add_argument(
        "--only", metavar="A,B,…", help="train these directions of the stage alone, e.g. t2t,t2i"
    )
    tuning = parser.add_argument_group("sft: what else is said, see docs/fine-tuning.md")
    tuning.add_argument("--epochs", type=float, default=3.0, help="default: %(default)s")
    tuning.add_argument("--batch", type=int, default=32, metavar="ROWS", help="of a step")
    tuning.add_argument("--max-length", type=int, default=2048, metavar="POSITIONS")
    tuning.add_argument(
        "--cut", action="store_true", help="shorten longer answers (default: leave the rows out)"
    )
    tuning.add_argument("--rank", type=int, default=16, help="of the adapters (default: 16)")
    tuning.add_argument("--full", action="store_true", help="train all weights, not adapters")
    tuning.add_argument("--thinking", choices=("on", "off"), help="switch of chat answers")
    tuning.add_argument("--adapter", metavar="NAME", help="what the columns mean")
    tuning.add_argument("--task", metavar="NAME", help="direction of the rows, e.g. t2t")
    keeping = parser.add_argument_group("what is kept")
    keeping.add_argument("--save-every", type=int, default=1000, metavar="STEPS")
    keeping.add_argument("--keep", type=int, default=2, metavar="N", help="checkpoints (0: all)")
    keeping.add_argument("--log-every", type=int, default=10, metavar="STEPS")
    watching = parser.add_argument_group("validation")
    watching.add_argument(
        "--validation", type=Path, metavar="FILE", help="held-out data, as --data"
    )
    watching.add_argument("--validate-every", type=int, metavar="STEPS")
    watching.add_argument("--validation-records", type=int, default=32, metavar="N")
    watching.add_argument(
        "--generate", type=int, default=2, metavar="N", help="answers of each direction"
    )
    watching.add_argument("--generate-steps", type=int, metavar="N", help="denoising steps of each")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Train.

    Returns:
        The exit status: 1 where settings, checkpoint and data do not fit together.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in TINY:
        from vllm_dynin.training_ext.__main__ import main as train_tiny

        return train_tiny(given)
    parser = _parser()
    options = parser.parse_intermixed_args(given)
    if options.recipe == SFT and options.out is None:
        options.out = Path("sft")
    for name, value in (("from", options.start), ("data", options.data), ("out", options.out)):
        if value is None:
            parser.error(f"--{name} is needed")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        _train(options)
    except (ValueError, FloatingPointError) as error:
        print(f"vllm-dynin train: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        from vllm_dynin.training_ext.trainer.run import Stopped

        if not isinstance(error, Stopped):
            raise
        print(f"vllm-dynin train: {error} with --resume", file=sys.stderr)
        return 143  # as a process that SIGTERM ends
    return 0


def _train(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from vllm_dynin.training_ext import settings
    from vllm_dynin.training_ext.trainer.export import Companions
    from vllm_dynin.training_ext.trainer.run import RunOptions, run
    from vllm_dynin.training_ext.trainer.stage_run import (
        prepare_stage,
        read_data,
        stage_validator,
    )

    if options.recipe == SFT:
        stage, data, held_out = _sft(options)
    else:
        stage, data, held_out = _stage(options), read_data(options.data), None
        if options.validation is not None:
            held_out = read_data(options.validation)
    kept = RunOptions(
        save_every=options.save_every,
        keep=options.keep,
        log_every=options.log_every,
        validate_every=options.validate_every,
    )
    prepared = prepare_stage(stage, options.start, data)
    trainer = prepared.trainer
    validator = None
    if held_out is not None:
        validator = stage_validator(
            stage,
            options.start,
            held_out,
            num_records=options.validation_records,
            num_generated=options.generate,
            steps=options.generate_steps,
        )
    is_main = trainer.parallel.is_main
    text = settings.render(stage)
    if is_main:
        print(text, flush=True)
    with tqdm(
        total=stage.train.num_steps,
        unit="step",
        file=sys.stderr,
        mininterval=1,
        disable=not is_main,
    ) as bar:

        def show(report: StepReport) -> None:
            bar.n = report.step
            bar.set_postfix_str(_progress(report), refresh=False)
            bar.update(0)

        try:
            final = run(
                trainer,
                options.out,
                kept,
                companions=Companions(options.start),
                validator=validator,
                settings=text,
                is_resumed=options.resume,
                on_step=show,
                extra=prepared.skipped,
            )
        finally:
            prepared.write_skipped(options.out)
    if is_main:
        print(f"written: {final}; to serve it: vllm serve {final}")
    trainer.parallel.close()


def _stage(options: argparse.Namespace) -> StageConfig:
    from vllm_dynin.entrypoints.commands.stages import named_stage

    return _changed(named_stage(options.recipe), options)


def _sft(options: argparse.Namespace) -> tuple[StageConfig, dict[str, Any], dict[str, Any] | None]:
    """The stage of a fine-tuning run, its data, and held-out data if any."""
    import os

    import torch

    from vllm_dynin import checkpoint
    from vllm_dynin.canvas import Task
    from vllm_dynin.training_ext.sft import SftOptions, count_rows, sft_data, sft_stage, survey

    said = SftOptions(
        epochs=options.epochs,
        batch=options.batch,
        max_length=options.max_length,
        overflow="cut" if options.cut else "refuse",
        rank=None if options.full else options.rank,
        thinking=None if options.thinking is None else options.thinking == "on",
        adapter=options.adapter,
        task=None if options.task is None else Task(options.task),
    )
    data = sft_data(options.data, said)
    held_out = None if options.validation is None else sft_data(options.validation, said)
    config = checkpoint.load_config(options.start)
    stage = sft_stage(
        config,
        count_rows(data),
        said,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        has_gpu=torch.cuda.is_available(),
    )
    stage = _changed(stage, options)
    if os.environ.get("RANK", "0") == "0":
        print(survey(data, stage, config, options.start), file=sys.stderr, flush=True)
    return stage, data, held_out


def _changed(stage: StageConfig, options: argparse.Namespace) -> StageConfig:
    from dataclasses import replace

    from vllm_dynin.training_ext import settings

    if options.only:
        known = {task.value: task for task in stage.tasks}
        wanted = options.only.split(",")
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise ValueError(
                f"{stage.name} has no direction {', '.join(unknown)}; it has {', '.join(known)}"
            )
        stage = replace(
            stage, tasks={t: one for t, one in stage.tasks.items() if t.value in wanted}
        )
    changes: dict[str, Any] = dict(settings.parse_overrides(options.settings))
    return settings.override(stage, changes)


def _progress(report: StepReport) -> str:
    tasks = " ".join(f"{task} {part.loss:.3g}" for task, part in report.tasks.items())
    speed = report.num_positions / max(report.seconds, 1e-9)
    data = report.data_seconds / max(report.seconds, 1e-9)
    memory = report.peak_bytes / 2**30
    return (
        f"loss {report.loss:.3f} ({tasks}), {speed:,.0f} positions/s, data {data:.0%}, "
        f"{memory:.1f} GiB"
    )
