"""`vllm-dynin COMMAND …`: finds the command and hands it its arguments.

Each command is a module with a `main(arguments)` of its own, imported when it is called: most need
PyTorch, one or two need vLLM, and `--help` needs neither.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "demo": (
        "vllm_dynin.entrypoints.commands.demo",
        "answer text prompts, then every direction in one batch; writes an HTML report",
    ),
    "serve": (
        "vllm_dynin.entrypoints.commands.serve",
        "vllm serve with routes for images, speech and transcriptions",
    ),
    "fetch": (
        "vllm_dynin.entrypoints.commands.fetch",
        "a model and its codecs from the hub, in one folder to serve",
    ),
    "convert-codec": (
        "vllm_dynin.processors.codecs.convert",
        "convert an original .bin or .pt codec to safetensors",
    ),
    "eval": (
        "vllm_dynin.entrypoints.commands.evaluate",
        "measure every direction of a checkpoint through the engine",
    ),
    "ablate": (
        "vllm_dynin.entrypoints.commands.ablate",
        "vary steps, merging or the end tokens of stage 1; writes table and plot",
    ),
    "merge": (
        "vllm_dynin.entrypoints.commands.merge",
        "average a backbone with its stage-1 descendant",
    ),
    "merge-adapter": (
        "vllm_dynin.entrypoints.commands.merge_adapter",
        "add a LoRA adapter (PEFT's format) to the matrices of a checkpoint",
    ),
    "extend-vocab": (
        "vllm_dynin.entrypoints.commands.extend_vocab",
        "add rows for image codes or speech units to a checkpoint",
    ),
    "quantize": (
        "vllm_dynin.entrypoints.commands.quantize",
        "write a copy of a checkpoint with its large matrices in eight bits",
    ),
    "train": (
        "vllm_dynin.entrypoints.commands.train",
        "train a stage of the recipe, or a tiny model from nothing",
    ),
    "export": (
        "vllm_dynin.entrypoints.commands.export",
        "write the weights of a training checkpoint to be served",
    ),
    "stages": (
        "vllm_dynin.entrypoints.commands.stages",
        "print the configuration of a training stage, or what tells two apart",
    ),
    "tokenize": (
        "vllm_dynin.entrypoints.commands.tokenize",
        "encode a data set's media, and write token files for training",
    ),
    "dry-run": (
        "vllm_dynin.entrypoints.commands.dry_run",
        "parameters, memory per GPU and tokens per step of training",
    ),
}
"""Name → the module whose `main(arguments)` it is, and one line of help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        The exit status: 2 for an unknown command.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_usage())
        return 0
    name, *rest = given
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        print(
            f"vllm-dynin: unknown command {name!r}; {hint}commands are {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    sys.argv = [f"vllm-dynin {name}", *rest]  # what argparse calls the program in its messages
    status = importlib.import_module(COMMANDS[name][0]).main(rest)
    return 0 if status is None else int(status)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vllm-dynin COMMAND [options]",
            "",
            *lines,
            "",
            "`vllm-dynin COMMAND --help` says more.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
