"""Trajectories of finished requests, kept by the worker until somebody fetches them."""

from __future__ import annotations

from collections import OrderedDict

from vllm_dynin.sampling.decided_steps import DecidedSteps

MAX_KEPT = 1_024
"""Trajectories kept; the oldest goes first. One is ten bytes a slot, so this is some 10 MB."""


class TrajectoryStore:
    """Trajectories by the engine's own request id."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, DecidedSteps] = OrderedDict()

    def start(self, request_id: str) -> DecidedSteps:
        """The record of a request that starts, or that resumes after preemption."""
        record = self._kept.setdefault(request_id, DecidedSteps())
        self._kept.move_to_end(request_id)
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return record

    def peek(self, client_id: str) -> tuple[list[int], list[int]] | None:
        """Steps and ids of a request's slots as they stand now; None if it is not kept (yet).

        Args:
            client_id: the id a client gave the request; the engine adds `-` and some letters.
        """
        for request_id, record in reversed(self._kept.items()):
            if request_id == client_id or request_id.startswith(f"{client_id}-"):
                return record.steps(), record.ids()
        return None

    def take(self, request_id: str) -> list[int] | None:
        """Steps of a request's slots, forgotten here; None if it is not kept (any more)."""
        record = self._kept.pop(request_id, None)
        return None if record is None else record.steps()
