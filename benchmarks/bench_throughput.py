"""Tokens per second of the engine at concurrency 8 against the reference driver, one by one.

    python benchmarks/bench_throughput.py [--json FILE] [--concurrency 8] [--tokens 32]

The same requests, the same checkpoint (random, fp32), the same denoising steps, one process with
the same threads: first the plain-PyTorch reference driver, one request after the other, then the
engine. The answers are compared token for token, and a difference is an error: a speed without
that would mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import torch
from random_checkpoint import NUM_TEXT_PIECES, write_random_checkpoint
from vllm import LLM, SamplingParams

from vllm_dynin.checkpoint import load_config
from vllm_dynin.kv_memory import kv_cache_bytes
from vllm_dynin.planning import PlanRequest, StandardOptions, make_plan
from vllm_dynin.reference.backbone import LLaDA, load_reference
from vllm_dynin.reference.driver import run_plan
from vllm_dynin.sampling.params import DenoiseParams

BLOCK = 16


def requests(count: int, length: int) -> list[list[int]]:
    """Prompts of 24 to 64 random text ids."""
    generator = torch.Generator().manual_seed(count)
    sizes = torch.randint(24, 65, (count,), generator=generator).tolist()
    draw = [torch.randint(NUM_TEXT_PIECES, (size,), generator=generator) for size in sizes]
    return [ids.tolist() for ids in draw]


def run_reference(
    model: LLaDA, prompts: list[list[int]], length: int
) -> tuple[float, list[list[int]]]:
    """Seconds, and the answers."""
    options = DenoiseParams(steps=length, block_length=BLOCK)

    def answer(prompt: list[int]) -> list[int]:
        standard = StandardOptions(max_tokens=length)
        request = PlanRequest(prompt_ids=tuple(prompt), standard=standard, options=options)
        plan = make_plan(request, model.config)
        for decoder in run_plan(model, plan):
            ids = decoder.ids
        return ids.tolist()

    start = time.perf_counter()
    answers = [answer(prompt) for prompt in prompts]
    return time.perf_counter() - start, answers


def run_engine(llm: LLM, prompts: list[list[int]], length: int) -> tuple[float, list[list[int]]]:
    """Seconds, and the answers."""
    params = SamplingParams(
        max_tokens=length,
        temperature=0,
        ignore_eos=True,
        detokenize=False,
        extra_args={"dynin_steps": length, "dynin_block_length": BLOCK},
    )
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    start = time.perf_counter()
    outputs = llm.generate(inputs, params, use_tqdm=False)
    return time.perf_counter() - start, [list(o.outputs[0].token_ids) for o in outputs]


def main() -> None:
    """Measure, compare the answers, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the best counts")
    parser.add_argument("--size", default="medium", help="tiny or medium")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    prompts = requests(args.concurrency, args.tokens)
    with tempfile.TemporaryDirectory() as folder:
        write_random_checkpoint(Path(folder), args.size)
        path = f"{folder}/{args.size}"
        llm = LLM(
            path,
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=512,
            max_num_batched_tokens=8192,
            max_num_seqs=args.concurrency,
            enforce_eager=True,
            kv_cache_memory_bytes=kv_cache_bytes(
                load_config(path),
                num_requests=args.concurrency,
                request_rows=512,
                step_rows=8192,
                element_bytes=4,
            ),
        )
        # The engine settles the threads of this process first; both then run with the same.
        model = load_reference(path, dtype=torch.float32)
    run_reference(model, prompts[:1], BLOCK)  # first calls allocate
    run_engine(llm, prompts, BLOCK)
    reference, engine, alone = list[float](), list[float](), list[float]()
    for _ in range(args.repeats):  # in turns, so that a disturbance hits both
        seconds, expected = run_reference(model, prompts, args.tokens)
        reference.append(seconds)
        seconds, answers = run_engine(llm, prompts, args.tokens)
        engine.append(seconds)
        alone.append(run_engine(llm, prompts[:1], args.tokens)[0])
        if answers != expected:
            different = sum(a != e for a, e in zip(answers, expected, strict=True))
            raise SystemExit(f"{different} of {len(prompts)} answers differ from the reference's")
    reference_s, engine_s, alone_s = min(reference), min(engine), min(alone)
    count = args.concurrency * args.tokens
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    result = {
        "machine": machine,
        "concurrency": args.concurrency,
        "tokens": count,
        "reference_tokens_per_s": count / reference_s,
        "engine_alone_tokens_per_s": args.tokens / alone_s,
        "engine_tokens_per_s": count / engine_s,
        "ratio": reference_s / engine_s,
    }
    print(f"{machine}, torch {torch.__version__}, size {args.size}, {count} tokens, all equal")
    print(f"reference driver, one by one   {result['reference_tokens_per_s']:8.1f} tokens/s")
    print(f"engine, one request            {result['engine_alone_tokens_per_s']:8.1f} tokens/s")
    print(
        f"engine, concurrency {args.concurrency:<10} {result['engine_tokens_per_s']:8.1f} tokens/s"
    )
    print(f"ratio to the reference driver  {result['ratio']:8.2f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
