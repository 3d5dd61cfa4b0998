"""`vllm-dynin extend-vocab`: add rows for image codes or speech units to a checkpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm-dynin extend-vocab", description=__doc__)
    parser.add_argument("source", type=Path, help="checkpoint folder")
    parser.add_argument("output", type=Path, help="folder to create")
    parser.add_argument("--image-codes", type=int, metavar="N", help="image codes afterwards")
    parser.add_argument("--speech-units", type=int, metavar="N", help="speech units afterwards")
    parser.add_argument(
        "--init", choices=("mean", "mean+noise", "codebook-projection"), default="mean+noise"
    )
    parser.add_argument(
        "--noise-scale",
        type=float,
        default=0.1,
        help="deviation of new rows, in units of the old rows' own (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep-padding", action="store_true", help="leave existing unused rows as they are"
    )
    parser.add_argument(
        "--codebook",
        nargs=2,
        metavar=("FILE", "TENSOR"),
        help="safetensors file and the name of the matrix of code vectors in it",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Extend a checkpoint.

    Returns:
        The exit status: 1 where the checkpoint or the options do not fit.
    """
    given = _parser().parse_args(arguments)
    from safetensors import SafetensorError, safe_open

    from vllm_dynin.training_ext import vocab

    try:
        codebook = None
        if given.codebook is not None:
            file, name = given.codebook
            try:
                with safe_open(file, framework="pt") as handle:
                    codebook = handle.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file} has no readable tensor {name!r}: {error}") from error
        options = vocab.ExtendOptions(
            num_image_codes=given.image_codes,
            num_speech_units=given.speech_units,
            init=vocab.RowInit(given.init),
            noise_scale=given.noise_scale,
            seed=given.seed,
            keep_padding=given.keep_padding,
        )
        rows = vocab.extend_vocabulary(given.source, given.output, options, codebook=codebook)
    except ValueError as error:
        print(f"vllm-dynin extend-vocab: {error}", file=sys.stderr)
        return 1
    what = f"rows {rows.start} to {rows.stop - 1} initialised" if rows else "nothing to initialise"
    print(f"{what}; written: {given.output}")
    return 0
