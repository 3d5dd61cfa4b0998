"""`vllm-dynin eval`: measure every direction of a checkpoint through the vLLM engine."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_dynin.canvas import Task
from vllm_dynin.entrypoints.demo.engine import engine, prepare
from vllm_dynin.entrypoints.engine_arguments import (
    add_question_arguments,
    decoding_options,
    engine_options,
    measured_engine,
)

if TYPE_CHECKING:
    from vllm_dynin.training_ext.evaluate.figures import Evaluation

_DIRECTIONS = {
    "t2t": Task.TEXT_TO_TEXT,
    "i2t": Task.IMAGE_TO_TEXT,
    "v2t": Task.VIDEO_TO_TEXT,
    "s2t": Task.SPEECH_TO_TEXT,
    "t2s": Task.TEXT_TO_SPEECH,
    "t2i": Task.TEXT_TO_IMAGE,
    "i2i": Task.IMAGE_TO_IMAGE,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vllm-dynin eval",
        description=__doc__,
        epilog="Other arguments go to the engine, e.g. --max-num-seqs 64 (vllm serve --help=all).",
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint", type=Path, nargs="+", help="folders; each is measured on its own"
    )
    parser.add_argument(
        "--directions", nargs="+", choices=tuple(_DIRECTIONS), help="default: all it has"
    )
    add_question_arguments(parser, limit=100)
    parser.add_argument(
        "--no-unguided", action="store_true", help="leave out images without guidance"
    )
    parser.add_argument(
        "--codecs", type=Path, metavar="FOLDER", help="checkpoint whose codecs are used"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON there as well")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="Markdown whose table of quality is replaced"
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress bars")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print what came out.

    Returns:
        The exit status: 1 where a checkpoint or an option does not fit.
    """
    given, rest = _parser().parse_known_args(arguments)
    prepare()  # before anything imports vLLM
    import msgspec

    from vllm_dynin.training_ext.evaluate import table
    from vllm_dynin.training_ext.evaluate.ablations import page
    from vllm_dynin.training_ext.evaluate.ablations.codecs import with_codecs
    from vllm_dynin.training_ext.evaluate.ablations.sweep import Point, Sweep
    from vllm_dynin.training_ext.evaluate.measure import evaluate
    from vllm_dynin.training_ext.evaluate.questions import Settings

    tasks = None if given.directions is None else [_DIRECTIONS[one] for one in given.directions]
    found: list[Evaluation] = []
    try:
        settings = Settings(
            options=decoding_options(given.set),
            is_tuned=not given.serving_defaults,
            with_unguided=not given.no_unguided,
        )
        options = measured_engine(engine_options(rest))
        for folder in given.checkpoint:
            with with_codecs(folder, given.codecs) as whole, engine(whole, **options) as (llm, _):
                evaluation = evaluate(
                    llm,
                    directions=tasks,
                    limit=given.limit,
                    seeds=given.seeds,
                    settings=settings,
                    use_tqdm=not given.no_progress,
                )
            found.append(evaluation)
            if not given.json:
                print(f"{folder}, seeds {' '.join(map(str, given.seeds))}")
                print(table.plain(table.HEADER, table.rows(evaluation)))
                print(table.summary(evaluation), end="\n\n", flush=True)
        if given.page is not None:
            command = shlex.join(["vllm-dynin", "eval", *(arguments or sys.argv[1:])])
            points = [Point(series=one.checkpoint, evaluation=one) for one in found]
            page.write(Sweep(kind="quality", command=command, points=points), given.page)
    except (ValueError, RuntimeError) as error:
        print(f"vllm-dynin eval: {error}", file=sys.stderr)
        return 1
    encoded = msgspec.json.format(msgspec.json.encode(found), indent=2).decode()
    if given.json:
        print(encoded)
    if given.output is not None:
        given.output.write_text(encoded + "\n", encoding="utf-8")
    return 0
