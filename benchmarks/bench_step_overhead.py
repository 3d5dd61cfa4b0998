"""What the engine adds to the forward in each denoising step, at 1, 8 and 16 concurrent requests.

    python benchmarks/bench_step_overhead.py [--json FILE] [--interpreted] [--requests 1 8 16]

"Engine" is one `LLMEngine.step`: scheduling, the runner's bookkeeping, the forward, the sampler,
and the outputs. "Forward" is the transformer and the output head, timed inside it. The difference
is the overhead; a step counts when it denoised (prompt passes do not). The engine runs in this
process, so the hop between vLLM's two processes is not in the figures. "Processor" is the overhead
in time that this thread was running, which other load on the machine does not add to. A random
checkpoint is made unless one is given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import torch
from random_checkpoint import NUM_TEXT_PIECES, write_random_checkpoint
from vllm import LLM, SamplingParams

from vllm_dynin.checkpoint import load_config
from vllm_dynin.kv_memory import kv_cache_bytes

PROMPT, TOKENS, BLOCK = 32, 64, 16


class Stopwatch:
    """Adds up the seconds spent in wrapped calls, by the clock and of this thread."""

    def __init__(self) -> None:
        self.seconds = self.own_seconds = 0.0
        self.calls = 0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed; on a GPU it is waited for."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start, own_start = time.perf_counter(), time.thread_time()
            result = function(*args, **kwargs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - start
            self.own_seconds += time.thread_time() - own_start
            self.calls += 1
            return result

        return timed


class TimedEngine:
    """An in-process engine whose steps, forwards and head products are timed."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        core: Any = llm.llm_engine.engine_core
        model = core.engine_core.model_executor.driver_worker.worker.model_runner.model
        self.transformer, self.head = Stopwatch(), Stopwatch()
        model.forward = self.transformer.wrap(model.forward)
        model.head = self.head.wrap(model.head)
        self.step = llm.llm_engine.step
        llm.llm_engine.step = self._timed_step  # type: ignore[method-assign]
        self.records: list[tuple[float, float, float, float]] = []

    def _timed_step(self) -> Any:
        transformer, head, calls = self.transformer.seconds, self.head.seconds, self.head.calls
        forward = self.transformer.own_seconds + self.head.own_seconds
        start, own_start = time.perf_counter(), time.thread_time()
        outputs = self.step()
        total, own = time.perf_counter() - start, time.thread_time() - own_start
        if self.head.calls > calls:  # a denoising step
            own -= self.transformer.own_seconds + self.head.own_seconds - forward
            spent = self.transformer.seconds - transformer, self.head.seconds - head
            self.records.append((total, *spent, own))
        return outputs

    def run(self, num_requests: int, repeats: int) -> dict[str, float]:
        """Median milliseconds per denoising step of `num_requests` equal requests."""
        generator = torch.Generator().manual_seed(num_requests)
        ids = torch.randint(NUM_TEXT_PIECES, (num_requests, PROMPT), generator=generator)
        prompts = [{"prompt_token_ids": row} for row in ids.tolist()]
        params = SamplingParams(
            max_tokens=TOKENS,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            extra_args={"dynin_steps": TOKENS, "dynin_block_length": BLOCK},
        )
        self.llm.generate(prompts, params, use_tqdm=False)  # first calls allocate
        self.records.clear()
        for _ in range(repeats):
            self.llm.generate(prompts, params, use_tqdm=False)
        total, transformer, head, own = zip(*self.records, strict=True)
        overhead = [t - f - h for t, f, h, _ in self.records]
        return {
            "requests": num_requests,
            "steps": len(total),
            "step_ms": 1e3 * statistics.median(total),
            "transformer_ms": 1e3 * statistics.median(transformer),
            "head_ms": 1e3 * statistics.median(head),
            "overhead_ms": 1e3 * statistics.median(overhead),
            "processor_ms": 1e3 * statistics.median(own),
            "overhead_p95_ms": 1e3 * sorted(overhead)[int(0.95 * len(overhead))],
        }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a checkpoint folder; default: a tiny random one")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument(
        "--interpreted",
        action="store_true",
        help="keep the runner's kernels in Triton's interpreter",
    )
    args = parser.parse_args()
    if args.interpreted:
        from vllm_dynin import compat

        compat.replace_runner_kernels = lambda: []
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            write_random_checkpoint(Path(folder), "tiny")
        llm = LLM(
            args.model or f"{folder}/tiny",
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=512,
            max_num_batched_tokens=8192,
            max_num_seqs=max(args.requests),
            enforce_eager=True,
            kv_cache_memory_bytes=kv_cache_bytes(
                load_config(args.model or f"{folder}/tiny"),
                num_requests=max(args.requests),
                request_rows=512,
                step_rows=8192,
                element_bytes=4,
            ),
        )
    engine = TimedEngine(llm)
    results = [engine.run(count, args.repeats) for count in args.requests]
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        machine = torch.cuda.get_device_name()
    print(
        f"{machine}, torch {torch.__version__}; {PROMPT} + {TOKENS} tokens, ms per denoising step"
    )
    print("requests   step  transformer   head  overhead  (95 %)  processor")
    for r in results:
        print(
            f"{r['requests']:8} {r['step_ms']:6.2f} {r['transformer_ms']:12.2f} "
            f"{r['head_ms']:6.2f} {r['overhead_ms']:9.2f} {r['overhead_p95_ms']:7.2f} "
            f"{r['processor_ms']:10.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
