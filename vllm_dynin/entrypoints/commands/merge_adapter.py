"""`vllm-dynin merge-adapter`: add a LoRA adapter to the matrices of a checkpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DTYPES = ("bfloat16", "float16", "float32")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm-dynin merge-adapter", description=__doc__)
    parser.add_argument("base", type=Path, help="checkpoint the adapter was trained on")
    parser.add_argument("adapter", type=Path, help="folder in PEFT's format")
    parser.add_argument("output", type=Path, help="folder to create")
    parser.add_argument("--dtype", choices=DTYPES, help="default: that of the checkpoint")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Merge.

    Returns:
        The exit status: 1 where adapter and checkpoint do not fit.
    """
    given = _parser().parse_args(arguments)
    import torch

    from vllm_dynin.training_ext.lora import merge_adapter
    from vllm_dynin.training_ext.trainer.export import Companions

    try:
        count = merge_adapter(
            given.base,
            given.adapter,
            given.output,
            dtype=None if given.dtype is None else getattr(torch, given.dtype),
            companions=Companions(given.base),
        )
    except ValueError as error:
        print(f"vllm-dynin merge-adapter: {error}", file=sys.stderr)
        return 1
    print(
        f"{count} matrices changed; written: {given.output}; to serve it: vllm serve {given.output}"
    )
    return 0
