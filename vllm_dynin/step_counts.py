"""What the engine core has done since it last told: one set of counts for each direction.

vLLM's `SchedulerStats` has no room for what a model counts. Its field `running_lora_adapters` is a
`dict[str, int]` that nothing fills or reads where there are no LoRA adapters, and these models
refuse them at start-up; the counts travel there under keys of our own. Remove that detour when
vLLM offers a field.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

_PREFIX = "dynin"


class StepCounts(msgspec.Struct, kw_only=True):
    """Counts of one direction. All but the last two are since the last telling."""

    steps: int = 0
    """Denoising steps."""

    positions: int = 0
    """Undecided slots that those steps looked at."""

    tokens: int = 0
    """Tokens that became final."""

    conditional_forwards: int = 0
    """Sequences through the model: one a step."""

    unconditional_forwards: int = 0
    """Second streams of guidance through the model."""

    saved_forwards: int = 0
    """Second streams that were not computed again, because they never change."""

    skipped_steps: int = 0
    """Steps that were asked for and not run: the answer had ended, or nothing was left to do."""

    postponed_steps: int = 0
    """Steps that had to wait for another engine step, because the token budget was full."""

    preemptions: int = 0
    """Times a request lost its place in the KV cache and started over."""

    started: int = 0
    """Requests whose first step came."""

    queue_microseconds: int = 0
    """Time those had waited."""

    finished: int = 0
    """Requests that came to their end; aborted ones did not."""

    waiting: int = 0
    """Requests that wait for their first step, now."""

    running: int = 0
    """Requests in the batch, now."""


def pack(directions: Mapping[str, StepCounts]) -> dict[str, int]:
    """Counts by direction, as flat keys."""
    return {
        f"{_PREFIX}/{direction}/{name}": value
        for direction, counts in directions.items()
        for name, value in msgspec.structs.asdict(counts).items()
    }


def unpack(flat: Mapping[str, int]) -> dict[str, StepCounts]:
    """What `pack` packed, out of a mapping that may hold other keys too."""
    directions: dict[str, StepCounts] = {}
    for key, value in flat.items():
        prefix, _, rest = key.partition("/")
        direction, _, name = rest.partition("/")
        if prefix == _PREFIX:
            setattr(directions.setdefault(direction, StepCounts()), name, value)
    return directions
