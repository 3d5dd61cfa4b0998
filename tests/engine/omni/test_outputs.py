"""What comes back beside the ids: several answers, log-probabilities, detokenised text."""

import pytest
import torch
from helpers.omni_mix import Heads, case_of, decode, expected, run, tokens_of

from vllm_dynin.canvas import Task
from vllm_dynin.report import REPORT
from vllm_dynin.tokens import DYNIN_OMNI as V

TASKS = (Task.TEXT_TO_IMAGE, Task.TEXT_TO_SPEECH, Task.TEXT_IMAGE_TO_TEXT_IMAGE)


def cases_of(config, **standard):
    heads = Heads(config, 31)
    return [
        case_of(
            heads.head(task),
            {"steps": 5, "text_tokens": 8 if task is TASKS[2] else None},
            max_tokens=14 if task is TASKS[1] else None,
            temperature=1.0,
            seed=40,
            ignore_eos=True,
            **standard,
        )
        for task in TASKS
    ]


def test_several_answers(omni, omni_reference):
    """Answer i is the one that seed + i gives alone, as with any model in vLLM."""
    cases = cases_of(omni_reference.config, n=3)
    for case, output in zip(cases, run(omni, cases), strict=True):
        assert len(output.outputs) == 3
        for index, answer in enumerate(output.outputs):
            params = case.params.clone()
            params.seed, params.n = 40 + index, 1
            alone = type(case)(case.prompt_ids, params)
            assert list(answer.token_ids) == expected(omni_reference, alone)


@pytest.mark.parametrize("num_top", [0, 3])
def test_logprobs(omni, omni_reference, num_top):
    cases = cases_of(omni_reference.config, logprobs=num_top)
    for case, output in zip(cases, run(omni, cases), strict=True):
        (answer,) = output.outputs
        decoder = decode(omni_reference, case)
        count = len(answer.token_ids)
        wanted = decoder.logprobs(0, count)
        assert list(answer.token_ids) == decoder.ids[:count].tolist()
        for slot, (token, found) in enumerate(zip(answer.token_ids, answer.logprobs, strict=True)):
            assert found[token].logprob == pytest.approx(float(wanted.logprobs[slot, 0]), abs=1e-3)
            others = {
                int(id_): float(logprob)
                for id_, logprob in zip(
                    wanted.ids[slot, 1:], wanted.logprobs[slot, 1:], strict=True
                )
            }
            assert {id_: found[id_].logprob for id_ in others} == pytest.approx(others, abs=1e-3)
        total = torch.tensor(
            [item[id_].logprob for item, id_ in zip(answer.logprobs, answer.token_ids, strict=True)]
        ).sum()
        assert answer.cumulative_logprob == pytest.approx(float(total), abs=1e-2)


def test_codes_have_no_text(omni, omni_reference):
    """Detokenisation is on by default; image codes and units come out as nothing, or are left."""
    cases = cases_of(omni_reference.config)
    for case, output in zip(cases, run(omni, cases), strict=True):
        (answer,) = output.outputs
        assert list(answer.token_ids) == expected(omni_reference, case)
        known = [token for token in answer.token_ids if token < V.num_text_pieces]
        assert len(answer.text) <= sum(len(f"filler{token}") for token in known)
        assert answer.finish_reason == "length"


@pytest.mark.parametrize("task", [Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE])
@pytest.mark.parametrize("parity", ["default", "reference"])
def test_the_requested_steps_are_run(omni, omni_reference, task, parity):
    """The original edits in 64 steps whatever it is asked for."""
    head = Heads(omni_reference.config, 33).head(task)
    options = {"steps": 7, "parity": parity, "report": True, "resolution": 64}
    (output,) = run(omni, [case_of(head, options, temperature=1.0, seed=1)])
    assert output.kv_transfer_params[REPORT]["steps"] == 7


def test_usage_counts_the_conditional_prompt(omni, omni_reference):
    cases = cases_of(omni_reference.config)
    outputs = run(omni, cases)
    assert [len(output.prompt_token_ids) for output in outputs] == [
        len(case.prompt_ids) for case in cases
    ]
    assert tokens_of(outputs) == [expected(omni_reference, case) for case in cases]
