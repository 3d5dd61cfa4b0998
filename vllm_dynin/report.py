"""What a request cost, as it is told to the client.

vLLM has one way for an engine to return something with a request's output beside tokens,
`kv_transfer_params`; these models refuse KV transfer, so the report travels there. Remove that
detour when vLLM offers a field of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

REPORT = "dynin_report"
"""Key of a report in `kv_transfer_params`."""


class Report(msgspec.Struct, kw_only=True):
    """What one request cost. Plain data: it is sent to the client."""

    mode: str = "exact"
    """How steps are computed; `exact` recomputes the whole sequence at each of them."""

    task: str = ""
    """Direction, as in `canvas.Task`."""

    steps: int = 0
    """Denoising steps. The pass over the prompt, which decides nothing, is not one."""

    forwards: int = 0
    """Sequences of the request that went through the model in those steps: two a step with
    guidance, one without."""

    tokens: int = 0
    """Tokens of the answer that are final so far."""

    tokens_per_forward: float = 0.0
    """`tokens / forwards`; 0 before the first forward."""

    postponed_steps: int = 0
    """Engine steps in which the request had to stand back, because the token budget was full."""

    preemptions: int = 0
    """Times it lost its place in the KV cache and started over with a pass over its prompt."""

    queue_seconds: float = 0.0
    """From arrival in the engine core to the first step."""

    prompt_seconds: float = 0.0
    """From the first step to the first denoising step: the pass over the prompt, in which media
    are encoded."""

    run_seconds: float = 0.0
    """From the first step on, steps of other requests in between included."""

    trajectory: str | None = None
    """Name under which the workers keep the trajectory, where one was asked for."""


def read_report(parameters: Mapping[str, Any] | None) -> Report | None:
    """The report in an output's `kv_transfer_params`, None where there is none."""
    found = (parameters or {}).get(REPORT)
    return None if found is None else msgspec.convert(found, Report)
