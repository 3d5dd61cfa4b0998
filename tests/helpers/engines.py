"""Real vLLM engines for the tests: tiny, single-threaded, and shut down for good."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import vllm.envs
from vllm import LLM, AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.reader import get_metrics_snapshot

# `nobind`: the engine shares the machine with the reference model and with other engines.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
DEFAULTS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 4,
    "block_size": 32,
    "enforce_eager": True,
    "num_gpu_blocks_override": 80,  # four of the longest requests fit: nobody is preempted
    "kv_cache_memory_bytes": 1 << 26,
    "disable_log_stats": False,
}

# Engines of this process share torch.distributed, which ends when any of them is shut down or
# collected. They are tiny, so all of them stay until the process ends.
_KEPT: list[LLM] = []


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables for a while; vLLM's cache of them is dropped before and after."""
    values = ENVIRONMENT | values
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    vllm.envs.disable_envs_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        vllm.envs.disable_envs_cache()


@contextmanager
def start_llm(folder: Path, **options: Any) -> Iterator[LLM]:
    """An `LLM` on a checkpoint.

    Its core runs in this process, which starts three times faster and lets tests look inside.
    Engines with processes of their own are `start_async` and the server of conftest.py. An option
    that is None is left to vLLM, whatever `DEFAULTS` says.
    """
    chosen = {name: value for name, value in (DEFAULTS | options).items() if value is not None}
    with environment(VLLM_ENABLE_V1_MULTIPROCESSING="0"):
        _KEPT.append(LLM(str(folder), **chosen))
    yield _KEPT[-1]


@contextmanager
def start_async(folder: Path, threads: str, **options: Any) -> Iterator[AsyncLLM]:
    """An `AsyncLLM` whose core and ranks have processes of their own; call it in an event loop.

    Args:
        folder: checkpoint.
        threads: cores of each rank, as VLLM_CPU_OMP_THREADS_BIND has them.
        options: of the engine.
    """
    with environment(VLLM_CPU_OMP_THREADS_BIND=threads):
        arguments = AsyncEngineArgs(model=str(folder), **(DEFAULTS | options))
        engine = AsyncLLM.from_engine_args(arguments)
    try:
        yield engine
    finally:
        engine.shutdown()


@contextmanager
def started(
    loop: asyncio.AbstractEventLoop, folder: Path, threads: str, **options: Any
) -> Iterator[AsyncLLM]:
    """`start_async` for tests that are not asynchronous: the engine's tasks run in `loop`."""
    ranks = start_async(folder, threads, **options)

    async def enter() -> AsyncLLM:  # vLLM starts tasks in the running loop
        return ranks.__enter__()

    yield loop.run_until_complete(enter())
    ranks.__exit__(None, None, None)


def metric(name: str) -> float:
    """Sum of a counter or gauge of the engine that was started last, over its labels."""
    found = [metric for metric in get_metrics_snapshot() if metric.name == name]
    assert found, f"vLLM reports no metric {name}"
    return sum(metric.value for metric in found)


@contextmanager
def counted_preemptions(llm: LLM) -> Iterator[list[str]]:
    """Ids of the requests that an engine of `start_llm` preempts meanwhile.

    vLLM's metrics are those of the engine started last, and several live in one test process.
    """
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    original, preempted = scheduler._preempt_request, []

    def preempt(request: Any, *args: Any, **kwargs: Any) -> None:
        preempted.append(request.request_id)
        original(request, *args, **kwargs)

    scheduler._preempt_request = preempt
    try:
        yield preempted
    finally:
        del scheduler._preempt_request


@contextmanager
def asynchronous(llm: LLM) -> Iterator[list[int]]:
    """Let an engine of `start_llm` decide steps while earlier ones are computed.

    VLLM turns `async_scheduling` off on a CPU, so the engine core is switched over to the loop that
    it would have chosen with it. Here a step is computed at once, but nobody hears of its outcome
    before the next one is decided, as on a GPU.

    Yields:
        For each step with something to compute, how many steps were under way when it was decided.
    """
    core = llm.llm_engine.engine_core.engine_core
    scheduler, loop = core.scheduler, core.step_fn
    schedule, under_way = scheduler.schedule, list[int]()

    def noting(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        if output.total_num_scheduled_tokens:
            under_way.append(sum(out.total_num_scheduled_tokens > 0 for _, out, _ in queue))
        return output

    queue = core.batch_queue = deque(maxlen=2)
    core.batch_queue_size, core.step_fn = 2, core.step_with_batch_queue
    core.async_scheduling = scheduler._is_async = True
    scheduler.schedule = noting
    try:
        yield under_way
    finally:
        while queue:  # what is under way belongs to this loop
            core.step_fn()
        core.batch_queue, core.batch_queue_size, core.step_fn = None, 1, loop
        core.async_scheduling = scheduler._is_async = False
        scheduler.schedule = schedule


@contextmanager
def preempting(llm: LLM, every: int = 5, times: int = 12) -> Iterator[list[str]]:
    """Take the place of the newest running request away at every so many steps, some times.

    Not for ever: a request starts its active block again, and must come to its end.

    Admission reserves all that a request will need, so nothing else preempts one, except vLLM's
    `reset_prefix_cache(reset_running_requests=True)`, which does this for all of them.

    Yields:
        Ids of the requests that were preempted.
    """
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    original, preempted, steps = scheduler.schedule, [], itertools.count(1)

    def schedule(*args: Any, **kwargs: Any) -> Any:
        if next(steps) % every == 0 and scheduler.running and len(preempted) < times:
            request = scheduler.running.pop()
            preempted.append(request.request_id)
            scheduler._preempt_request(request, time.monotonic(), drop_stale_output=True)
        return original(*args, **kwargs)

    scheduler.schedule = schedule
    try:
        yield preempted
    finally:
        del scheduler.schedule
