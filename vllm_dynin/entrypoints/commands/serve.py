"""`vllm-dynin serve CHECKPOINT …`: `vllm serve` with the routes of this package."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points

PLUGIN = "dynin"
"""Name of both entry points of this package, of the model and of its routes."""

_LOADED_BY_DEFAULT = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)
"""Groups of which vLLM loads everything while `VLLM_PLUGINS` is not set."""


def plugins_with_ours(allowed: str | None, installed: Iterable[str]) -> str:
    """What `VLLM_PLUGINS` must be for our routes to be served and nothing else to change.

    vLLM loads routes only if their plugin is named there, and naming one filters all others.

    Args:
        allowed: the variable as it is; None where it is not set.
        installed: plugins that vLLM loads while it is not set.
    """
    names = list(installed) if allowed is None else allowed.split(",")
    return ",".join(dict.fromkeys([*(name for name in names if name), PLUGIN]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Become `vllm serve`; all arguments are its own.

    Returns:
        Never, but for `--help`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in ("-h", "--help"):
        print(
            "usage: vllm-dynin serve CHECKPOINT [options of vllm serve]\n\n"
            "vllm serve, with images, speech, transcriptions and chat that answers in media beside "
            "its own routes\n(VLLM_PLUGINS names them). All options are those of vllm serve: "
            "vllm serve --help"
        )
        raise SystemExit(0)
    installed = [point.name for group in _LOADED_BY_DEFAULT for point in entry_points(group=group)]
    allowed = os.environ.get("VLLM_PLUGINS")
    os.environ["VLLM_PLUGINS"] = plugins_with_ours(allowed, installed)
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *given]
    os.execv(sys.executable, command)  # so that signals reach the server itself
