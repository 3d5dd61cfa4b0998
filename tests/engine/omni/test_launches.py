"""What a denoising step costs outside the forward: launches, waits, and memory, at any batch."""

from itertools import pairwise

import pytest
import torch
from helpers.launches import WAITS, counted_steps
from helpers.omni_mix import Heads, case_of, run

from vllm_dynin.canvas import Task
from vllm_dynin.model_executor.group_logits import GroupLogits
from vllm_dynin.processors.templates import DIRECTIONS
from vllm_dynin.tokens import Modality

MOST = 60 - 7
"""Launches of a step outside the transformer: 60, less the kernels of the runner (NumPy here)."""


def cases_of(config, tasks, count, **options):
    """Requests whose steps all go on for a while."""
    heads, cases = Heads(config, 51), []
    for number in range(count):
        task = tasks[number % len(tasks)]
        is_image = DIRECTIONS[task].output is Modality.IMAGE
        own = {"steps": 10} | ({"width": 48, "height": 48} if is_image else {"block_length": 12})
        cases.append(
            case_of(
                heads.head(task),
                own | {name: value for name, value in options.items() if name != "temperature"},
                max_tokens=None if is_image else 24,
                temperature=options.get("temperature", (0.0, 1.0, 0.7)[number % 3]),
                seed=number,
                ignore_eos=True,
            )
        )
    return cases


def steady(steps):
    """Steps with the same requests as the two before them."""
    triples = zip(steps, steps[1:], steps[2:], strict=False)
    found = [c for a, b, c in triples if a.requests == b.requests == c.requests]
    assert len(found) >= 3
    return found


@pytest.mark.parametrize("count", [1, 8, 16])
@pytest.mark.parametrize(
    ("tasks", "options"),
    [
        ([Task.TEXT_TO_TEXT], {"temperature": 0.0}),
        ([Task.TEXT_TO_IMAGE], {}),
        ([Task.TEXT_TO_SPEECH], {"guidance_scale": 2.0}),
        (list(Task), {"guidance_scale": 1.5}),
    ],
    ids=["text", "images", "speech", "every direction"],
)
def test_launches(omni, omni_reference, tasks, options, count, monkeypatch, record_property):
    """As on a GPU, where a product of logits is not cut into tiles that fit a cache."""
    monkeypatch.setattr(GroupLogits, "_tiles", lambda self, num_rows, group: [(0, num_rows)])
    cases = cases_of(omni_reference.config, tasks, count, **options)
    with counted_steps(omni) as steps:
        run(omni, cases)
    every = steady(steps)
    for step in every:
        assert len(step.requests) <= count
        assert not {name for name in step.own if name.startswith(WAITS)}, step.own
    own = max(step.own.total() for step in every)
    others = max(step.others.total() for step in every)
    print(f"launches outside the forward: {own} of ours, {others} of vLLM's runner")
    record_property("launches", own + others)
    assert own + others <= MOST, max(every, key=lambda step: step.own.total())


def test_waits_are_noticed(omni, omni_reference):
    """Reference parity asks the device, as its definition does; the counter sees it."""
    case = cases_of(omni_reference.config, [Task.TEXT_TO_TEXT], 1, parity="reference")
    with counted_steps(omni) as steps:
        run(omni, case)
    assert any(name.startswith(WAITS) for step in steps for name in step.own)


def test_a_steady_step_takes_no_memory(omni, omni_reference):
    """All tensors that are alive after a step, against those after the one before."""
    cases = cases_of(omni_reference.config, list(Task), 10, guidance_scale=1.5)
    run(omni, cases)  # tables of columns are made once
    with counted_steps(omni, measures_memory=True) as steps:
        run(omni, cases)
    sizes = [step.num_bytes for step in steady(steps)]
    assert max(sizes) - min(sizes) < 1 << 16, sizes
    kept = torch.zeros(1 << 17, dtype=torch.uint8)  # what would be seen
    with counted_steps(omni, measures_memory=True) as grown:
        run(omni, cases[:1])
    assert kept.numel() and all(a.num_bytes for a, _ in pairwise(grown))
