"""Arguments of commands that start an engine of their own."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from vllm_dynin.canvas import Task
from vllm_dynin.sampling.params import PREFIX, DenoiseParams


def engine_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Engine arguments of vLLM, as `vllm.LLM` takes them; only those that were given.

    Args:
        arguments: of the command line, e.g. `["--max-num-seqs", "64"]`.

    Raises:
        ValueError: one that vLLM does not know, or that names the model.
    """
    if not arguments:
        return {}
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(add_help=False))
    parsed, unknown = parser.parse_known_args(list(arguments))
    given = {
        name: value for name, value in vars(parsed).items() if value != parser.get_default(name)
    }
    if unknown or "model" in given:
        raise ValueError(
            f"unknown arguments {' '.join(unknown) or '--model'}; beside its own this command "
            "takes vLLM's engine arguments (vllm serve --help=all), and the checkpoint by position"
        )
    return given


def decoding_options(given: Sequence[str]) -> dict[Task, DenoiseParams]:
    """Options like `t2s.block_length=8` by direction.

    Args:
        given: DIRECTION.OPTION=VALUE; VALUE is a number, true, false or text.

    Raises:
        ValueError: not of this form, no such direction or option, or the value is out of range.
    """
    found: dict[Task, dict[str, Any]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        task, dot, option = name.partition(".")
        if not (equals and dot and option) or task not in set(Task):
            raise ValueError(
                f"{text!r} is not DIRECTION.OPTION=VALUE, e.g. t2s.block_length=8; directions are "
                f"{', '.join(Task)}"
            )
        found.setdefault(Task(task), {})[PREFIX + option] = _value(value)
    return {task: DenoiseParams.parse(options) for task, options in found.items()}


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def add_question_arguments(parser: argparse.ArgumentParser, *, limit: int) -> None:
    """Which questions are asked: `--limit`, `--seeds` and `--set`."""
    parser.add_argument(
        "--limit",
        type=int,
        default=limit,
        help="questions of each direction and seed (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="of questions and answers (default: 0)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="DIRECTION.OPTION=VALUE",
        help="a decoding option of one direction, e.g. t2s.block_length=8; can be repeated",
    )
    parser.add_argument(
        "--serving-defaults",
        action="store_true",
        help="decode with the serving defaults, not as dynin-tiny is asked elsewhere",
    )


def measured_engine(given: Mapping[str, Any]) -> dict[str, Any]:
    """Engine arguments for questions of the tiny world: many short ones at once."""
    sizes = {"max_num_seqs": 32, "max_num_batched_tokens": 8_192}
    return {**sizes, "block_size": 32, **given}
