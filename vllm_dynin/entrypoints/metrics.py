"""Our counts on vLLM's registry, so that they are at `/metrics` of `vllm serve`.

The engine core counts (`model_executor/reports.py`) and sends its counts along with vLLM's own
(`step_counts.py`); the class below, which vLLM loads in its frontend as a stat logger plugin, turns
them into Prometheus metrics. docs/operating.md explains each.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from vllm.v1.metrics.loggers import AggregateStatLoggerBase
from vllm.v1.spec_decode.metrics import SpecDecodingLogging, SpecDecodingProm, SpecDecodingStats

from vllm_dynin.compat import ask_engines
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.step_counts import StepCounts, unpack

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.protocol import EngineClient
    from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

T = TypeVar("T")

PREFIX = "dynin:"
"""How names of our metrics open. Not with `vllm:`, which vLLM unregisters when an engine starts."""

_LABELS = ("model_name", "engine", "direction")
_COUNTERS = {
    "steps": ("denoising_steps", "Denoising steps."),
    "tokens": ("tokens", "Tokens that became final."),
    "conditional_forwards": ("conditional_forwards", "Sequences that went through the model."),
    "unconditional_forwards": (
        "unconditional_forwards",
        "Second sequences of guidance that went through the model.",
    ),
    "saved_forwards": (
        "saved_forwards",
        "Second sequences of guidance that were not computed again, because they never change.",
    ),
    "skipped_steps": (
        "skipped_steps",
        "Steps that were asked for and not run: the answer had ended, or nothing was left to do.",
    ),
    "postponed_steps": (
        "postponed_steps",
        "Steps that waited for another engine step, because the token budget was full.",
    ),
    "preemptions": (
        "preemptions",
        "Times a request lost its place in the KV cache and started over with its prompt.",
    ),
    "started": ("started_requests", "Requests whose first step came."),
    "queue_microseconds": ("queue_seconds", "Time that started requests had waited."),
    "finished": ("finished_requests", "Requests that came to their end."),
}
_GAUGES = {
    "waiting": ("requests_waiting", "Requests that wait for their first step."),
    "running": ("requests_running", "Requests in the batch."),
}


class DenoisingStatLogger(AggregateStatLoggerBase):
    """Records the counts of the engine cores; does nothing for models of other families.

    Args:
        vllm_config: of the engine.
        engine_indexes: of the engine cores this frontend serves.
    """

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int]) -> None:
        self._is_ours = isinstance(vllm_config.model_config.hf_config, LLaDAConfig)
        self._model_name = str(vllm_config.model_config.served_model_name)
        self._engines = engine_indexes
        self._log = SpecDecodingLogging(is_diffusion=True)
        self._core: SpecDecodingProm | None = None
        self._num_slots = vllm_config.model_config.max_model_len
        if not self._is_ours:
            return
        _unregister()
        self._counters = {
            name: Counter(PREFIX + metric, text, _LABELS)
            for name, (metric, text) in _COUNTERS.items()
        }
        self._gauges = {
            name: Gauge(PREFIX + metric, text, _LABELS, multiprocess_mode="mostrecent")
            for name, (metric, text) in _GAUGES.items()
        }
        encoding_counters()
        decoding_seconds()

    def log_engine_initialized(self) -> None:
        """Register core's diffusion metrics, which it leaves out where `is_diffusion` is false.

        Only now: vLLM's own logger is made after this one, and unregisters what it finds.
        """
        if self._is_ours and self._core is None:
            values: dict[int, list[object]] = {
                index: [self._model_name, str(index)] for index in self._engines
            }
            self._core = SpecDecodingProm(None, ["model_name", "engine"], values, is_diffusion=True)

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        """Record what an engine core has counted since the last call."""
        if not self._is_ours or scheduler_stats is None:
            return
        for direction, counts in unpack(scheduler_stats.running_lora_adapters).items():
            self._record_direction((self._model_name, str(engine_idx), direction), counts)
            self._record_core(counts, engine_idx)

    def log(self) -> None:
        """Core's line about denoising, beside its line about throughput."""
        self._log.log()

    def _record_direction(self, labels: tuple[str, ...], counts: StepCounts) -> None:
        for name, counter in self._counters.items():
            scale = 1e-6 if name.endswith("microseconds") else 1
            counter.labels(*labels).inc(getattr(counts, name) * scale)
        for name, gauge in self._gauges.items():
            gauge.labels(*labels).set(getattr(counts, name))

    def _record_core(self, counts: StepCounts, engine_idx: int) -> None:
        if not counts.steps:
            return
        stats = SpecDecodingStats(
            num_spec_tokens=self._num_slots,
            num_drafts=counts.steps,
            num_draft_tokens=counts.positions,
            num_accepted_tokens=counts.tokens,
        )
        self._log.observe(stats)
        if self._core is not None:
            self._core.observe(stats, engine_idx)


@cache
def encoding_counters() -> tuple[Counter, Counter]:
    """Counters of the media that workers have encoded, and of the seconds; label `codec`."""
    return (
        Counter(PREFIX + "encoded_media", "Media that workers encoded.", ("codec",)),
        Counter(PREFIX + "encoding_seconds", "Time workers took for that.", ("codec",)),
    )


async def watch_encoding(engine: EngineClient, seconds: float = 10.0) -> None:
    """Ask the workers for their encoding times, again and again, until cancelled.

    vLLM's statistics carry nothing from a worker, so the frontend asks; a call takes less than a
    millisecond between two engine steps.

    Args:
        engine: the frontend's client of the engine.
        seconds: between two calls.
    """
    media, time_taken = encoding_counters()
    while True:
        await asyncio.sleep(seconds)
        for times in await ask_engines(engine, "dynin_take_encoding_times", (), None):
            for codec, (number, total) in times.items():
                media.labels(codec).inc(number)
                time_taken.labels(codec).inc(total)


@cache
def decoding_seconds() -> Histogram:
    """The histogram of the time that decoding one medium takes, label `codec`."""
    return Histogram(
        PREFIX + "decoding_seconds",
        "Time from the end of a request's tokens to its image or sound, waiting included.",
        ("codec",),
        buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    )


def time_decoding(codec: str, start: Callable[[], Future[T]]) -> Future[T]:
    """Start to decode one medium, and count how long that takes.

    Args:
        codec: `image` or `speech`.
        start: starts it; it may do all of the work.
    """
    started = time.perf_counter()
    future = start()

    def observe(_: Future[T]) -> None:
        decoding_seconds().labels(codec).observe(time.perf_counter() - started)

    future.add_done_callback(observe)
    return future


def _unregister() -> None:
    """Forget metrics of an engine that this process had before, as vLLM does with its own."""
    decoding_seconds.cache_clear()
    encoding_counters.cache_clear()
    found: dict[Any, Any] = REGISTRY._collector_to_names
    for collector in list(found):
        if getattr(collector, "_name", "").startswith(PREFIX):
            REGISTRY.unregister(collector)
