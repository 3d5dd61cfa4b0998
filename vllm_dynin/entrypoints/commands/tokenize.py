"""`vllm-dynin tokenize`: a data set with media into token files for training."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_dynin.canvas import Task
    from vllm_dynin.training_ext.data.encode import EncodeOptions
    from vllm_dynin.training_ext.data.tokenize import TokenizeReport

_DESCRIPTION = """\
Encode the images, videos and recordings of a data set with a checkpoint's codecs, and write its
records as token files. Run the same command again after an interruption: finished parts are kept.
Damaged samples are left out, counted, and listed in DIR/bad.jsonl; those that are too long or say
nothing, in DIR/filtered.jsonl.
"""


def _parser() -> argparse.ArgumentParser:
    from vllm_dynin.training_ext.data.adapters import ADAPTERS
    from vllm_dynin.training_ext.data.bad import MAX_BAD_SHARE, MAX_FILTERED_SHARE
    from vllm_dynin.training_ext.data.encode import EncodeOptions

    parser = argparse.ArgumentParser(
        prog="vllm-dynin tokenize",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "data", help="manifest (.jsonl), .parquet, .arrow, .csv, .tsv, .tar, folder"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--checkpoint", metavar="DIR", help="whose codecs are used")
    parser.add_argument("--task", help="direction of the rows, e.g. t2i; a manifest may say it")
    parser.add_argument(
        "--stage",
        metavar="NAME[:release]",
        help="take sizes and limits from a stage of the recipe, e.g. stage2; needs --task",
    )
    parser.add_argument("--adapter", default="record", choices=list(ADAPTERS))
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="what the adapter calls NAME stands in COLUMN; may be repeated",
    )
    parser.add_argument(
        "--thinking",
        choices=("on", "off"),
        help="ask for text answers with thinking, or without; see docs/training-data.md",
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="only rows that meet it, e.g. 'score > 8'; may be repeated",
    )
    parser.add_argument("--media-root", metavar="DIR", help="default: the folder of the file")
    parser.add_argument("--split", default="train", help="of a saved DatasetDict")
    parser.add_argument("--rows-per-part", type=int, default=1000, metavar="N")
    parser.add_argument("--workers", type=int, default=1, metavar="N")
    parser.add_argument(
        "--machine",
        default="0/1",
        metavar="I/N",
        help="make every N-th part from the I-th on; the other machines make the others",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        help="where the codecs run, e.g. cuda:0,cuda:1 for workers by turns (default: cpu)",
    )
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=MAX_BAD_SHARE,
        metavar="SHARE",
        help="more bad samples are an error (default: %(default)s)",
    )
    parser.add_argument(
        "--max-filtered-share",
        type=float,
        default=MAX_FILTERED_SHARE,
        metavar="SHARE",
        help="more samples that are too long or say nothing are an error (default: %(default)s)",
    )
    sizes = parser.add_argument_group("sizes and limits (default: what the checkpoint serves with)")
    for field in fields(EncodeOptions):
        flag = f"--{field.name.replace('_', '-')}"
        sizes.add_argument(flag, type=float if "seconds" in field.name else int, metavar="N")
    return parser


def _columns(given: list[str]) -> dict[str, str]:
    if not all("=" in column for column in given):
        raise ValueError(f"--column {' '.join(given)} must be NAME=COLUMN")
    return dict(column.split("=", 1) for column in given)


def _machine(given: str) -> tuple[int, int]:
    number, _, count = given.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise ValueError(f"--machine {given} must be I/N, e.g. 0/4 to 3/4")
    return int(number), int(count)


def _of_stage(name: str, task: Task | None) -> EncodeOptions:
    """Sizes and limits of one direction in a stage."""
    from vllm_dynin.training_ext.data.stage import stage_options
    from vllm_dynin.training_ext.stages import STAGES

    stage, _, variant = name.partition(":")
    if stage not in STAGES or variant not in ("", "release"):
        raise ValueError(
            f"stage {name!r} is unknown; known are {', '.join(STAGES)}, with :release behind it "
            "for the released settings"
        )
    if task is None:
        raise ValueError("--stage needs --task: each direction has sizes of its own")
    return stage_options(STAGES[stage]("release" if variant else "paper"), task)


def main(arguments: list[str] | None = None) -> int:
    """Tokenise a data set.

    Returns:
        The exit status: 1 where data and options do not fit, or too many samples are bad.
    """
    given = _parser().parse_args(arguments)
    from tqdm import tqdm

    from vllm_dynin.canvas import Task
    from vllm_dynin.training_ext.data.encode import EncodeOptions
    from vllm_dynin.training_ext.data.tokenize import BAD_REPORT, FILTERED_REPORT, tokenize
    from vllm_dynin.training_ext.data.tokenize_job import TokenizeJob

    try:
        columns, machine = _columns(given.column), _machine(given.machine)
        job = TokenizeJob(
            data=given.data,
            out=given.out,
            checkpoint=given.checkpoint,
            task=None if given.task is None else Task(given.task),
            adapter=given.adapter,
            columns=columns,
            thinking=None if given.thinking is None else given.thinking == "on",
            where=tuple(given.where),
            media_root=given.media_root,
            split=given.split,
            rows_per_part=given.rows_per_part,
            max_bad_share=given.max_bad_share,
            max_filtered_share=given.max_filtered_share,
            device=given.device,
        )
        if given.stage is not None:
            job = replace(job, options=_of_stage(given.stage, job.task))
        named = {f.name: getattr(given, f.name) for f in fields(EncodeOptions)}
        named = {name: value for name, value in named.items() if value is not None}
        job = replace(job, options=replace(job.encode_options(), **named))
        with tqdm(total=len(job.open()), unit=" rows", disable=None) as bar:
            report = tokenize(job, workers=given.workers, machine=machine, progress=bar.update)
    except ValueError as error:
        print(f"vllm-dynin tokenize: {error}", file=sys.stderr)
        return 1
    print(_summary(report, given.out / BAD_REPORT, given.out / FILTERED_REPORT))
    return 0


def _summary(report: TokenizeReport, bad_report: Path, filtered: Path) -> str:
    written = ", ".join(f"{count} {task}" for task, count in report.num_records.items())
    lines = [f"{report.num_rows} rows: {written or 'no'} records in {bad_report.parent}"]
    if report.num_left_out:
        lines.append(f"left out by --where: {report.num_left_out} rows")
    bad = ", ".join(f"{count} {kind}" for kind, count in report.num_bad.items())
    lines.append(f"bad samples: {bad} (see {bad_report})" if bad else "bad samples: none")
    if report.num_filtered:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.num_filtered.items())
        lines.append(f"filtered out: {kinds} (see {filtered})")
    made = f"{report.num_parts_made} of {report.num_parts} parts made in {report.seconds:.1f} s"
    if report.num_parts_to_come:
        made += f"; {report.num_parts_to_come} to come from other machines"
    return "\n".join([*lines, made])
