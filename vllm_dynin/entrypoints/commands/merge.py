"""`vllm-dynin merge`: average a backbone with its stage-1 descendant into a new checkpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vllm_dynin.config import LLaDAConfig

_STRATEGIES = ("shared", "stage1-only", "modality-disentangled")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm-dynin merge", description=__doc__)
    parser.add_argument("backbone", type=Path, help="folder of what stage 1 started from")
    parser.add_argument("stage1", type=Path, help="folder of the result of stage 1")
    parser.add_argument("output", type=Path, help="folder to create")
    parser.add_argument("--strategy", choices=_STRATEGIES, default=_STRATEGIES[-1])
    parser.add_argument(
        "--backbone-weight",
        type=float,
        default=0.6,
        help="weight of the backbone, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--row-boundary",
        type=int,
        metavar="ROW",
        help="rows from here on come from stage 1 (default: the first speech id)",
    )
    parser.add_argument(
        "--extra-rows",
        default="",
        metavar="LIST",
        help="more rows from stage 1: ids or names of control tokens, such as s2t,soa,eoa,t2s,v2t",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    return parser


def _row(text: str, config: LLaDAConfig) -> int:
    if text.isdecimal():
        return int(text)
    try:
        return int(getattr(config.vocabulary, text))
    except (AttributeError, TypeError, ValueError):
        raise ValueError(
            f"--extra-rows names {text!r}, which is neither an id nor a control token; "
            "s2t, soa, eoa, t2s and v2t are the ones stage 1 introduces"
        ) from None


def main(arguments: list[str] | None = None) -> int:
    """Merge, or say what merging would do.

    Returns:
        The exit status: 1 where the checkpoints or options do not fit.
    """
    given = _parser().parse_args(arguments)
    from vllm_dynin.training_ext import merge
    from vllm_dynin.training_ext.vocab import CheckpointReader

    try:
        stage1 = CheckpointReader(given.stage1)
        names = [name for name in given.extra_rows.split(",") if name]
        options = merge.MergeOptions(
            strategy=merge.Strategy(given.strategy),
            backbone_weight=given.backbone_weight,
            row_boundary=given.row_boundary,
            extra_rows_from_stage1=tuple(_row(name, stage1.config) for name in names),
        )
        plan = merge.plan_merge(CheckpointReader(given.backbone), stage1, options)
        print("\n".join(plan.lines()), flush=True)
        if not given.dry_run:
            merge.merge(given.backbone, given.stage1, given.output, options)
            print(f"written: {given.output}")
    except ValueError as error:
        print(f"vllm-dynin merge: {error}", file=sys.stderr)
        return 1
    return 0
