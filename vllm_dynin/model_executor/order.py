"""Who goes first where requests do not fit a step, or the KV cache, together.

First come, first served: the oldest requests get every step until they are done. Sharing steps in
turns would end all of them later, and none sooner. Nobody starves: whoever is the oldest is served,
and whoever is admitted gets older.

With `DYNIN_ORDER=short` an answer of few steps may pass one of many: each `STEPS_PER_PLACE`
steps of an answer cost it one place in the order of arrival. The place is fixed on arrival, so an
answer is passed by so many later ones at most, and starvation stays impossible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.request import Request

STEPS_PER_PLACE = 16
"""Steps of an answer for which one later request may pass it."""


class ServiceOrder:
    """Places of the requests in the engine.

    Args:
        prefers_short: whether short answers may pass long ones.
        has_priorities: whether the priority a client gave comes before everything else.
    """

    def __init__(self, *, prefers_short: bool, has_priorities: bool) -> None:
        self.prefers_short, self._has_priorities = prefers_short, has_priorities
        self._num_arrived = 0
        self._places: dict[str, tuple[int, int]] = {}

    def enter(self, request_id: str, num_steps: int) -> None:
        """Give a new request its place; `num_steps` are the denoising steps of its answer."""
        place = self._num_arrived
        if self.prefers_short:
            place += num_steps // STEPS_PER_PLACE
        self._places[request_id] = (place, self._num_arrived)
        self._num_arrived += 1

    def leave(self, request_id: str) -> None:
        """Forget a request."""
        self._places.pop(request_id, None)

    def key(self, request: Request) -> tuple[int, int, int]:
        """Sorts requests by who goes first."""
        priority = request.priority if self._has_priorities else 0
        return (priority, *self._places[request.request_id])
