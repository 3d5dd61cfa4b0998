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
        "recipe", help="stage1, stage2, stage3 or debug, with :release for the released settings"
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
    paths.add_argument("--data", type=Path, metavar="FILE", help="JSON that names the data")
    paths.add_argument("--out", type=Path, metavar="DIR", help="folder of the run")
    paths.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    paths.add_argument(
        "--only", metavar="A,B,…", help="train these directions of the stage alone, e.g. t2t,t2i"
    )
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

    stage = _stage(options)
    kept = RunOptions(
        save_every=options.save_every,
        keep=options.keep,
        log_every=options.log_every,
        validate_every=options.validate_every,
    )
    data = read_data(options.data)
    prepared = prepare_stage(stage, options.start, data)
    trainer = prepared.trainer
    validator = None
    if options.validation is not None:
        validator = stage_validator(
            stage,
            options.start,
            read_data(options.validation),
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
    from dataclasses import replace

    from vllm_dynin.entrypoints.commands.stages import named_stage
    from vllm_dynin.training_ext import settings

    stage = named_stage(options.recipe)
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
