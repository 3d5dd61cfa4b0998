"""`vllm-dynin demo`: the real engine at work, on the terminal and in an HTML report."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from vllm_dynin.entrypoints.demo.engine import prepare


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm-dynin demo", description=__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("out/demo.html"),
        metavar="FILE",
        help="where the report goes (default: %(default)s)",
    )
    parser.add_argument(
        "--only", choices=("text", "media"), help="run one of the two parts; both by default"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FOLDER",
        help="a trained checkpoint with media for part 2, in place of the stand-in",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration.

    Returns:
        The exit status: 1 where the input for it is missing.
    """
    options = _parser().parse_args(arguments)
    prepare()  # before anything imports vLLM
    from vllm_dynin.entrypoints.demo import html, media_part, text_part

    started = time.monotonic()
    text = media = None
    if options.only != "media":
        print("1. A trained text model answers prompts it has not seen, all at once")
        if text_part.CHECKPOINT.is_dir():
            text = text_part.run()
            print("\n".join(text.lines()), flush=True)
        else:
            print(f"  skipped: there is no {text_part.CHECKPOINT.name} among the assets")
        print()
    if options.only != "text":
        print("2. Every direction on real input, through one engine, in one batch")
        try:
            media = media_part.run(options.checkpoint)
        except ValueError as error:
            print(f"vllm-dynin demo: {error}", file=sys.stderr)
            return 1
        if not media.is_trained:
            print(
                "  The model here has random weights, so its answers mean nothing; input, codecs, "
                "engine, counts and times are real."
            )
        print("\n".join(media.lines()))
        print()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    html.write_report(options.output, text, media)
    print(f"Report: {options.output.resolve()}  ({time.monotonic() - started:.0f} s in all)")
    return 0
