"""`vllm-dynin dry-run`: parameters, memory per GPU and tokens per step of training, computed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm-dynin dry-run", description=__doc__)
    parser.add_argument(
        "checkpoint",
        type=Path,
        nargs="?",
        help="folder whose config.json gives the sizes (default: those of Dynin-Omni 8B)",
    )
    parser.add_argument("--gpus", type=int, help="GPUs (default: the paper's, 32, 32 and 40)")
    parser.add_argument(
        "--rows-per-gpu",
        type=int,
        help="rows of one pass on a GPU (default: the stage's batch over GPUs and micro-batches)",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Print the report.

    Returns:
        The exit status: 1 where the config or a number does not fit.
    """
    given = _parser().parse_args(arguments)
    from vllm_dynin.checkpoint import load_config
    from vllm_dynin.config import DyninOmniConfig
    from vllm_dynin.training_ext import dry_run

    try:
        config = DyninOmniConfig() if given.checkpoint is None else load_config(given.checkpoint)
        print(dry_run.report(config, num_gpus=given.gpus, rows_per_gpu=given.rows_per_gpu))
    except ValueError as error:
        print(f"vllm-dynin dry-run: {error}", file=sys.stderr)
        return 1
    return 0
