"""`vllm-dynin serve CHECKPOINT …`: `vllm serve` with the routes of this package."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points

from vllm_dynin import envs

PLUGIN = "dynin"
"""Name of both entry points of this package, of the model and of its routes."""

SHUTDOWN_SECONDS = 30
"""At SIGTERM, requests that run are given so long; vLLM's default drops them at once."""

_USAGE = f"""usage: vllm-dynin serve CHECKPOINT [--ui] [options of vllm serve]

vllm serve, with images, speech, transcriptions and chat that answers in media beside its own
routes (VLLM_PLUGINS names them).

  --ui    a page to try it, at /

All other options are those of vllm serve (vllm serve --help). --shutdown-timeout is
{SHUTDOWN_SECONDS} by default: requests that run at SIGTERM are finished."""

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


def server_options(given: Sequence[str]) -> list[str]:
    """Options for `vllm serve`: without ours, and with our defaults where they do not say."""
    if "--ui" in given:
        os.environ[envs.UI] = "1"
    options = [option for option in given if option != "--ui"]
    names = {option.partition("=")[0].replace("_", "-") for option in options}
    if "--shutdown-timeout" not in names:
        options += ["--shutdown-timeout", str(SHUTDOWN_SECONDS)]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Become `vllm serve`; all arguments but `--ui` are its own.

    Returns:
        Never, but for `--help`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in ("-h", "--help"):
        print(_USAGE)
        raise SystemExit(0)
    installed = [point.name for group in _LOADED_BY_DEFAULT for point in entry_points(group=group)]
    allowed = os.environ.get("VLLM_PLUGINS")
    os.environ["VLLM_PLUGINS"] = plugins_with_ours(allowed, installed)
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *server_options(given)]
    os.execv(sys.executable, command)  # so that signals reach the server itself
