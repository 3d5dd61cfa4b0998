"""`vllm-dynin stages`: print the configuration of a training stage, or what tells two apart."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_dynin.training_ext.stages import StageConfig


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vllm-dynin stages",
        description=__doc__,
        epilog="example: vllm-dynin stages stage2 stage2:release",
    )
    parser.add_argument(
        "stage",
        nargs="*",
        help="stage1, stage2, stage3 or debug, with :release for the released configuration; "
        "one is printed, two are told apart, none lists them all",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting of the first stage, e.g. train.learning_rate=1e-4 (may be repeated)",
    )
    parser.add_argument("--json", action="store_true", help="settings by name, as JSON")
    return parser


def named_stage(spelling: str) -> StageConfig:
    """A stage by its name, with `:release` or `:paper` behind it.

    Raises:
        ValueError: there is none of that name.
    """
    from vllm_dynin.training_ext.stages import STAGES

    name, _, variant = spelling.partition(":")
    if name not in STAGES or variant not in ("", "paper", "release"):
        raise ValueError(
            f"there is no stage {spelling!r}; use {', '.join(STAGES)}, with :release or :paper "
            "behind it"
        )
    return STAGES[name]("release" if variant == "release" else "paper")


def _line(stage: StageConfig) -> str:
    directions = " ".join(task.value for task in stage.tasks)
    return f"{stage.name}:{stage.variant}  {directions}  ({stage.global_batch} rows a step)"


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | list | tuple | None) else str(value)


def main(arguments: list[str] | None = None) -> int:
    """Print a stage or a difference.

    Returns:
        The exit status: 1 where a name or a setting does not exist.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    if len(given.stage) > 2:
        parser.error("at most two stages can be told apart")
    from vllm_dynin.training_ext import settings
    from vllm_dynin.training_ext.stages import STAGES

    try:
        names = given.stage or [
            f"{name}{variant}"
            for name in STAGES
            for variant in ([""] if name == "debug" else ["", ":release"])
        ]
        stages = [named_stage(name) for name in names]
        if given.set:
            changes = settings.parse_overrides(given.set)
            stages[0] = settings.override(stages[0], changes)
    except ValueError as error:
        print(f"vllm-dynin stages: {error}", file=sys.stderr)
        return 1
    if not given.stage:
        print("\n".join(map(_line, stages)))
    elif len(stages) == 2:
        print("\n".join(settings.differences(*stages)))
    elif given.json:
        flat = settings.flatten(stages[0])
        print(json.dumps({name: _plain(value) for name, value in flat.items()}, indent=2))
    else:
        print(settings.render(stages[0]))
    return 0
