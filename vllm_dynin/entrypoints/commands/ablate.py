"""`vllm-dynin ablate`: vary one thing, measure every direction, write table and plot."""

from __future__ import annotations

import argparse
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_dynin.entrypoints.demo.engine import engine, prepare
from vllm_dynin.entrypoints.engine_arguments import (
    add_question_arguments,
    decoding_options,
    engine_options,
    measured_engine,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm import LLM

    from vllm_dynin.training_ext.evaluate.ablations.sweep import Point


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vllm-dynin ablate",
        description=__doc__,
        epilog="Other arguments go to the engine, e.g. --max-num-seqs 64 (vllm serve --help=all).",
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    steps = kinds.add_parser("steps", help="denoising steps against quality")
    steps.add_argument("checkpoint", type=Path)
    merging = kinds.add_parser("merge", help="merging strategies against the backbone's weight")
    merging.add_argument("backbone", type=Path, help="what stage 1 started from")
    merging.add_argument("stage1", type=Path, help="what came out of stage 1")
    merging.add_argument(
        "--weights",
        type=float,
        nargs="+",
        help="of the backbone; default: four from 0.2 to 0.8",
    )
    merging.add_argument(
        "--keep-controls", action="store_true", help="take stage 1's control tokens from it"
    )
    eos = kinds.add_parser("eos", help="stage 1 without and with end tokens in its loss")
    eos.add_argument("without", type=Path, help="stage 1 trained without them")
    eos.add_argument("supervised", type=Path, help="stage 1 trained with them")
    for kind in (merging, eos):
        kind.add_argument(
            "--codecs", type=Path, metavar="FOLDER", help="checkpoint whose codecs are used"
        )
    for kind in (steps, merging, eos):
        add_question_arguments(kind, limit=60)
        kind.add_argument(
            "--page",
            type=Path,
            metavar="FILE",
            help="Markdown whose section is replaced, plot and JSON beside it; else the terminal",
        )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write what came out.

    Returns:
        The exit status: 1 where a checkpoint or an option does not fit.
    """
    given, rest = _parser().parse_known_args(arguments)
    prepare()  # before anything imports vLLM
    from vllm_dynin.training_ext.evaluate.ablations import page
    from vllm_dynin.training_ext.evaluate.ablations.sweep import Sweep

    try:
        points = _points(given, measured_engine(engine_options(rest)))
        command = shlex.join(["vllm-dynin", "ablate", *(arguments or sys.argv[1:])])
        sweep = Sweep(kind=given.kind, command=command, points=points)
        if given.page is None:
            print(page.section(sweep))
        else:
            page.write(sweep, given.page)
            print(f"written: {given.page}")
    except (ValueError, RuntimeError) as error:
        print(f"vllm-dynin ablate: {error}", file=sys.stderr)
        return 1
    return 0


def _points(given: argparse.Namespace, options: dict[str, Any]) -> list[Point]:
    from vllm_dynin.training_ext.evaluate.ablations import eos, merging, steps
    from vllm_dynin.training_ext.evaluate.questions import Settings

    @contextmanager
    def start(folder: Path) -> Iterator[LLM]:
        with engine(folder, **options) as (llm, _):
            yield llm

    common: dict[str, Any] = {
        "settings": Settings(
            options=decoding_options(given.set),
            is_tuned=not given.serving_defaults,
            with_unguided=False,
        ),
        "limit": given.limit,
        "seeds": given.seeds,
    }
    if given.kind == "steps":
        with start(given.checkpoint) as llm:
            return steps.sweep_steps(llm, **common)
    if given.kind == "merge":
        return merging.sweep_merging(
            start,
            given.backbone,
            given.stage1,
            weights=given.weights or merging.BACKBONE_WEIGHTS,
            keeps_controls=given.keep_controls,
            codecs=given.codecs,
            **common,
        )
    return eos.sweep_eos(start, given.without, given.supervised, codecs=given.codecs, **common)
