"""`vllm-dynin fetch`: a model and its codecs from the hub, in one folder that `serve` takes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm-dynin fetch", description=__doc__)
    parser.add_argument("model", help="repository, such as snu-aidas/Dynin-Omni, or a folder")
    parser.add_argument(
        "directory",
        type=Path,
        nargs="?",
        help="folder to create (default: the name of the model, here)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model's repository")
    what = "repository or folder of the %s codec (default: what the checkpoint or its family names)"
    parser.add_argument("--image-codec", help=what % "image")
    parser.add_argument("--speech-codec", help=what % "speech")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Fetch.

    Returns:
        The exit status: 1 where something cannot be had or is not what it should be.
    """
    given = _parser().parse_args(arguments)
    from vllm_dynin.fetch import Sources, fetch

    target = given.directory or Path(Path(given.model).name)
    sources = Sources(given.model, given.image_codec, given.speech_codec, given.revision)
    try:
        fetch(sources, target, say=lambda line: print(line, flush=True))
    except (ValueError, OSError) as error:
        print(f"vllm-dynin fetch: {error}", file=sys.stderr)
        return 1
    print(f"written: {target}; to serve it: vllm-dynin serve {target}")
    return 0
