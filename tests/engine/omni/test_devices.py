"""Every direction on a device against the reference driver on that device.

On a CPU the bodies run with the engines of the other tests; on a GPU with engines started as users
start them: no `enforce_eager`, no sizes but a share of the memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.devices import DEVICES, on_device
from helpers.engines import start_llm
from helpers.omni_mix import Heads, case_of, expected, mixed_directions, plan_of, run, tokens_of
from helpers.request_mix import Case

from vllm_dynin.canvas import Task
from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.processors.templates import DIRECTIONS
from vllm_dynin.reference.backbone import load_reference
from vllm_dynin.tokens import Modality

NUM_CASES = 20
ON_A_GPU: dict[str, Any] = {
    "enforce_eager": False,
    "block_size": None,
    "num_gpu_blocks_override": None,
    "kv_cache_memory_bytes": None,
    "max_num_seqs": None,
    "max_model_len": 2560,
    "gpu_memory_utilization": 0.2,
    "limit_mm_per_prompt": {"image": 4, "video": 2, "audio": 2},
}
FP32 = ON_A_GPU | {"dtype": "float32", "attention_config": {"backend": "TRITON_ATTN"}}
BF16 = ON_A_GPU | {"dtype": "bfloat16", "attention_config": {"backend": "FLASH_ATTN"}}
AGREEMENT = 0.85
"""Share of equal tokens that bfloat16 has to reach: its logits tie within rounding, and another
order of summing, or other rows beside them, decides such a tie otherwise."""

Start = Callable[..., Any]


@pytest.fixture(scope="module")
def start(omni_folder: Path) -> Iterator[Start]:
    """Engines by their options, each once."""
    started: dict[str, Any] = {}
    with ExitStack() as stack:

        def engine(**options: Any) -> Any:
            key = repr(options)
            if key not in started:
                started[key] = stack.enter_context(start_llm(omni_folder, **options))
            return started[key]

        yield engine


@pytest.fixture(scope="module")
def cases(omni_reference):
    found = mixed_directions(omni_reference.config, NUM_CASES, seed=21)
    assert {plan_of(case, omni_reference.config).canvas.task for case in found} == set(Task)
    return found


def reference_on(folder: Path, device: torch.device, dtype: torch.dtype):
    """The model of the reference driver; float32 without TF32, which is PyTorch's default."""
    return load_reference(folder).to(device, dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_the_reference_driver_says_the_same_everywhere(
    omni_folder, omni_reference, cases, device
) -> None:
    """Greedy tokens: in float32 on a GPU, and in float64 on a CPU, those of float32 on a CPU."""
    where = on_device(device)
    dtype = torch.float32 if device == "cuda" else torch.float64
    model = reference_on(omni_folder, where, dtype)
    few = [case for case in cases if case.params.temperature == 0][: 2 if device == "cpu" else None]
    assert len(few) >= 2
    assert [expected(model, c) for c in few] == [expected(omni_reference, c) for c in few]


@pytest.mark.parametrize("device", DEVICES)
def test_float32_is_token_for_token(request, omni_folder, cases, start, device) -> None:
    where = on_device(device)
    llm = request.getfixturevalue("omni") if device == "cpu" else start(**FP32)
    cases = cases[: len(Task)] if device == "cpu" else cases  # each direction once; more elsewhere
    model = reference_on(omni_folder, where, torch.float32)
    answers = [expected(model, case) for case in cases]
    assert tokens_of(run(llm, cases)) == answers  # all at once
    assert tokens_of(run(llm, cases[3:4])) == answers[3:4]  # alone


def one_step_cases(config: DyninOmniConfig) -> list[Case]:
    """Every direction decided in one step: no token depends on another that has differed."""
    heads = Heads(config, 4)
    found = []
    for task in Task:
        options: dict[str, Any] = {"steps": 1, "guidance_scale": 0.0}
        max_tokens = None
        if DIRECTIONS[task].output is Modality.IMAGE:
            options |= {"width": 96, "height": 96}
            if task is Task.TEXT_IMAGE_TO_TEXT_IMAGE:
                options["text_tokens"] = 20
        else:
            max_tokens = options["block_length"] = 24
        head = heads.head(task)
        found.append(
            case_of(head, options, max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        )
    return found


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_agrees(omni_folder, omni_reference, start, device) -> None:
    """The share of equal tokens where none depends on another; printed."""
    where = on_device(device)
    if device == "cpu":
        options = {"max_model_len": 640, "max_num_seqs": 32, "max_num_batched_tokens": 640}
        llm = start(dtype="bfloat16", num_gpu_blocks_override=256, **options)
    else:
        llm = start(**BF16)
    few = one_step_cases(omni_reference.config)
    model = reference_on(omni_folder, where, torch.bfloat16)
    pairs = [
        pair
        for case, answer in zip(few, tokens_of(run(llm, few)), strict=True)
        for pair in zip(answer, expected(model, case), strict=True)
    ]
    assert len(pairs) > 200 and len(set(pairs)) > 100
    share = sum(ours == theirs for ours, theirs in pairs) / len(pairs)
    print(f"bfloat16 on {device}: {share:.4f} of {len(pairs)} tokens equal the reference driver's")
    assert share >= AGREEMENT


@pytest.mark.gpu
def test_no_step_waits_for_the_gpu(monkeypatch, omni_folder, cases) -> None:
    """`VLLM_GPU_SYNC_CHECK=warn`: vLLM tells each wait that nobody has allowed, with its place.

    vLLM reads the variable once in a process: run this test in one of its own.
    """
    on_device("cuda")
    monkeypatch.setenv("VLLM_GPU_SYNC_CHECK", "warn")
    from vllm.utils import gpu_sync_debug

    monkeypatch.setattr(gpu_sync_debug, "_SYNC_CHECK_MODE", "warn")
    with start_llm(omni_folder, **(FP32 | {"max_model_len": 2304})) as llm:
        run(llm, cases)  # compiles what is left to compile
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(llm, cases)
    places: dict[str, int] = {}
    for warning in caught:
        if "synchronizing CUDA operation" in str(warning.message):
            place = f"{warning.filename}:{warning.lineno}"
            places[place] = places.get(place, 0) + 1
    for place, count in sorted(places.items(), key=lambda item: -item[1]):
        print(f"{count:6} waits at {place}")
    ours = [place for place in places if "vllm_dynin" in place]
    assert not ours, ours
