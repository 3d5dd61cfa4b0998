"""How long the encoders of this process take, for the metrics.

On a GPU the work is only queued when a call returns, so events in its stream are read later, and
nothing waits for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class CodecClock:
    """Sums of media and time by codec. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, tuple[int, float]] = {}
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def timed(self, codec: str, device: torch.device) -> Iterator[None]:
        """Count one medium, and the time the block takes on `device`."""
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            with self._lock:
                self._pending.append((codec, start, end))
            return
        started = time.perf_counter()
        yield
        self._add(codec, time.perf_counter() - started)

    def take(self) -> dict[str, tuple[int, float]]:
        """Media and seconds by codec since the last call; what still runs is left for the next."""
        with self._lock:
            pending, self._pending = self._pending, []
        for codec, start, end in pending:
            if end.query():
                self._add(codec, start.elapsed_time(end) / 1e3)
            else:
                with self._lock:
                    self._pending.append((codec, start, end))
        with self._lock:
            taken, self._sums = self._sums, {}
        return taken

    def _add(self, codec: str, seconds: float) -> None:
        with self._lock:
            media, total = self._sums.get(codec, (0, 0.0))
            self._sums[codec] = (media + 1, total + seconds)


CODEC_CLOCK = CodecClock()
"""That of this process."""
