"""`vllm-dynin quantize`: write a copy of a checkpoint with its large matrices in eight bits."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm-dynin quantize", description=__doc__)
    parser.add_argument("source", type=Path, help="folder of the checkpoint")
    parser.add_argument("output", type=Path, help="folder to create")
    parser.add_argument(
        "--scheme",
        choices=("int8", "fp8"),
        default="int8",
        help="int8 runs on CPUs and on GPUs from Turing on, fp8 from Ada on (default: %(default)s)",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Quantise.

    Returns:
        The exit status: 1 where the source is no checkpoint or the output exists.
    """
    given = _parser().parse_args(arguments)
    from vllm_dynin.quantization import SCHEMES, quantize_checkpoint

    try:
        quantize_checkpoint(given.source, given.output, SCHEMES[given.scheme])
    except (ValueError, OSError) as error:
        print(f"vllm-dynin quantize: {error}", file=sys.stderr)
        return 1
    print(f"written: {given.output}; to serve it: vllm-dynin serve {given.output}")
    return 0
