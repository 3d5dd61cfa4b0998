"""Counting what each request costs. The scheduler does it: it knows every step of every request."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from vllm_dynin.report import REPORT, Report
from vllm_dynin.sampling.params import DenoiseParams


class ReportBook:
    """Reports of the requests in the engine that asked for one."""

    def __init__(self) -> None:
        self._reports: dict[str, Report] = {}
        self._arrived: dict[str, float] = {}
        self._started: dict[str, float] = {}

    def open(self, request_id: str, options: DenoiseParams) -> None:
        """Start counting for a request, if its options ask for it."""
        if options.report or options.trajectory:
            name = request_id if options.trajectory else None
            self._reports[request_id] = Report(trajectory=name)
            self._arrived[request_id] = time.monotonic()

    def start(self, request_id: str) -> None:
        """Note that a request is in a step, be it of its prompt or a denoising step."""
        if request_id in self._reports:
            self._started.setdefault(request_id, time.monotonic())

    def count(self, request_id: str, num_streams: int) -> None:
        """Count one denoising step, and the streams that went through the model in it."""
        if (report := self._reports.get(request_id)) is not None:
            report.steps += 1
            report.forwards += num_streams

    def parameters(self, request_id: str) -> dict[str, Any] | None:
        """The report so far, as `kv_transfer_params`; None where none was asked for."""
        report = self._reports.get(request_id)
        if report is None:
            return None
        started = self._started.get(request_id, time.monotonic())
        report.queue_seconds = started - self._arrived[request_id]
        report.run_seconds = time.monotonic() - started
        return {REPORT: msgspec.to_builtins(report)}

    def close(self, request_id: str) -> dict[str, Any] | None:
        """The final report; the request is forgotten."""
        parameters = self.parameters(request_id)
        for book in (self._reports, self._arrived, self._started):
            book.pop(request_id, None)
        return parameters
