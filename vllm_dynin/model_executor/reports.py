"""Counting what requests cost. The scheduler does it: it knows every step of every request.

The same accounts make the report of one request and the counts behind the metrics.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import msgspec

from vllm_dynin.report import REPORT, Report
from vllm_dynin.sampling.decoder import Plan
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.step_counts import StepCounts


@dataclass
class _Account:
    report: Report
    is_told: bool  # whether the client asked for the report
    num_planned: int
    arrived: float
    started: float | None = None
    denoised: float | None = None
    is_waiting: bool = True


class ReportBook:
    """Accounts of the requests in the engine, and the counts of each direction."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._counts: dict[str, StepCounts] = {}

    def open(self, request_id: str, options: DenoiseParams, plan: Plan) -> None:
        """Start counting for a request.

        Args:
            request_id: the engine's own.
            options: say whether the client wants the report.
            plan: of the request.
        """
        task = plan.canvas.task
        name = request_id if options.trajectory else None
        self._accounts[request_id] = _Account(
            report=Report(task=task, trajectory=name),
            is_told=bool(options.report or options.trajectory),
            num_planned=sum(region.num_steps for region in plan.options),
            arrived=time.monotonic(),
        )
        self._counts_of(task).waiting += 1

    def start(self, request_id: str) -> None:
        """Note that a request is in a step, be it of its prompt or a denoising step."""
        account = self._accounts[request_id]
        counts = self._counts_of(account.report.task)
        if account.is_waiting:
            account.is_waiting = False
            counts.waiting -= 1
            counts.running += 1
        if account.started is None:
            account.started = time.monotonic()
            counts.started += 1
            counts.queue_microseconds += round(1e6 * (account.started - account.arrived))

    def count(self, request_id: str, num_streams: int, *, is_saved: bool = False) -> None:
        """Count one denoising step, and the streams that go through the model in it.

        Args:
            request_id: the engine's own.
            num_streams: two with guidance, one without.
            is_saved: whether a second stream is reused from an earlier step.
        """
        account = self._accounts[request_id]
        account.denoised = account.denoised or time.monotonic()
        account.report.steps += 1
        account.report.forwards += num_streams
        counts = self._counts_of(account.report.task)
        counts.steps += 1
        counts.conditional_forwards += 1
        counts.unconditional_forwards += num_streams - 1
        counts.saved_forwards += is_saved

    def decide(self, request_id: str, num_positions: int, num_tokens: int) -> None:
        """Count what a denoising step looked at, and how many tokens it made final."""
        if (account := self._accounts.get(request_id)) is None:  # aborted meanwhile
            return
        account.report.tokens += num_tokens
        counts = self._counts_of(account.report.task)
        counts.positions += num_positions
        counts.tokens += num_tokens

    def postpone(self, request_id: str) -> None:
        """Count a denoising step that does not fit into this engine step."""
        report = self._accounts[request_id].report
        report.postponed_steps += 1
        self._counts_of(report.task).postponed_steps += 1

    def requeue(self, request_id: str) -> None:
        """Note that a request was preempted and waits again."""
        account = self._accounts[request_id]
        account.is_waiting = True
        account.report.preemptions += 1
        counts = self._counts_of(account.report.task)
        counts.preemptions += 1
        counts.waiting += 1
        counts.running -= 1

    def parameters(self, request_id: str) -> dict[str, Any] | None:
        """The report so far, as `kv_transfer_params`; None where none was asked for."""
        account = self._accounts.get(request_id)
        if account is None or not account.is_told:
            return None
        now = time.monotonic()
        started = now if account.started is None else account.started
        denoised = now if account.denoised is None else account.denoised
        report = account.report
        report.queue_seconds = started - account.arrived
        report.prompt_seconds = max(0.0, denoised - started)
        report.run_seconds = now - started
        report.tokens_per_forward = report.tokens / report.forwards if report.forwards else 0.0
        return {REPORT: msgspec.to_builtins(report)}

    def close(self, request_id: str, *, is_complete: bool) -> dict[str, Any] | None:
        """The final report; the request is forgotten.

        Args:
            request_id: the engine's own.
            is_complete: whether it came to its end; otherwise it was aborted.
        """
        parameters = self.parameters(request_id)
        account = self._accounts.pop(request_id)
        counts = self._counts_of(account.report.task)
        if account.is_waiting:
            counts.waiting -= 1
        else:
            counts.running -= 1
        if is_complete:
            counts.finished += 1
            counts.skipped_steps += max(0, account.num_planned - account.report.steps)
        return parameters

    def take_counts(self) -> dict[str, StepCounts]:
        """Counts of each direction since the last call; how many wait and run goes on counting."""
        taken = self._counts
        self._counts = {
            task: StepCounts(waiting=own.waiting, running=own.running)
            for task, own in taken.items()
        }
        return taken

    def _counts_of(self, task: str) -> StepCounts:
        return self._counts.setdefault(task, StepCounts())
