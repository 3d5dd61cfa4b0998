"""`vllm-dynin export`: write the weights of a training checkpoint as they are served."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DTYPES = ("bfloat16", "float16", "float32")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm-dynin export", description=__doc__)
    parser.add_argument("source", type=Path, help="folder step-… of a run")
    parser.add_argument("output", type=Path, help="folder to create")
    parser.add_argument(
        "--average", action="store_true", help="the moving average instead of the weights"
    )
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="default: %(default)s")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Export.

    Returns:
        The exit status: 1 where the source is no whole training checkpoint.
    """
    given = _parser().parse_args(arguments)
    import torch

    from vllm_dynin.training_ext.trainer.checkpoints import read_state
    from vllm_dynin.training_ext.trainer.export import export

    try:
        state = read_state(given.source)
        if given.average and state.config["ema_decay"] is None:
            raise ValueError(f"{given.source} has no moving average; leave --average out")
        if (given.source / "adapter").is_dir():
            raise ValueError(
                f"{given.source} holds adapters; write them into their checkpoint with `vllm-dynin "
                f"merge-adapter BASE {given.source / 'adapter'} OUT`"
            )
        source = given.source / ("ema" if given.average else "model")
        export(source, given.output, dtype=getattr(torch, given.dtype))
    except ValueError as error:
        print(f"vllm-dynin export: {error}", file=sys.stderr)
        return 1
    print(f"step {state.step}; written: {given.output}; to serve it: vllm serve {given.output}")
    return 0
