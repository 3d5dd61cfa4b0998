"""A step decided while the last one is computed gives the same tokens."""

import random

import pytest
from helpers.engines import asynchronous, preempting
from helpers.request_mix import Case, expected_tokens, generate, mixed_cases, random_prompt

from vllm_dynin.report import REPORT
from vllm_dynin.sampling.params import DenoiseParams


@pytest.fixture(scope="module")
def cases(reference):
    return mixed_cases(48, reference.config, seed=3)


@pytest.fixture(scope="module")
def expected(reference, cases):
    return [expected_tokens(reference, case) for case in cases]


def test_tokens_are_the_same(llm, cases, expected):
    """Both parities: where a step's outcome matters it is waited for."""
    with asynchronous(llm) as under_way:
        assert generate(llm, cases) == expected
    assert sum(under_way) > len(under_way) / 2
    assert generate(llm, cases[:8]) == expected[:8]  # and off again


def test_preempted_requests(llm, cases, expected):
    """In mid-air: what the step under way gives is dropped."""
    with preempting(llm, every=3, times=20) as preempted, asynchronous(llm):
        assert generate(llm, cases[:24]) == expected[:24]
    assert len(preempted) == 20


def long_case(reference, seed, **standard):
    """48 tokens, one a step and block."""
    standard = {"max_tokens": 48, "temperature": 1.0, "seed": seed} | standard
    own = DenoiseParams(block_length=1, report=True)
    prompt = random_prompt(random.Random(seed), reference.config, 12)
    return Case(prompt, own.to_sampling_params(**standard))


def test_no_step_behind_the_last(llm, reference):
    """Steps are counted, so the end of an answer is known before its tokens are."""
    case = long_case(reference, 5, ignore_eos=True)
    with asynchronous(llm) as under_way:
        (output,) = llm.generate([case.prompt], [case.params], use_tqdm=False)
    assert list(output.outputs[0].token_ids) == expected_tokens(reference, case)
    assert output.kv_transfer_params[REPORT]["steps"] == 48
    assert under_way == [0, *[1] * 48]  # the pass over the prompt, and each step


def test_a_stop_is_learnt_one_step_late(llm, reference):
    """What was computed meanwhile is discarded."""
    plain = long_case(reference, 6, ignore_eos=True)
    answer = expected_tokens(reference, plain)
    token = next(token for token in answer[5:] if token not in answer[:5])
    case = long_case(reference, 6, ignore_eos=True, stop_token_ids=[token])
    with asynchronous(llm):
        (output,) = llm.generate([case.prompt], [case.params], use_tqdm=False)
    found = list(output.outputs[0].token_ids)
    assert found == answer[: answer.index(token) + 1]
    assert output.kv_transfer_params[REPORT]["steps"] == len(found) + 1
    assert output.kv_transfer_params[REPORT]["tokens"] == len(found)


def test_aborted_in_mid_air(llm, reference):
    """Others go on, and nothing of it stays behind."""
    engine = llm.llm_engine
    kept, gone = long_case(reference, 7), long_case(reference, 8)
    with asynchronous(llm):
        engine.add_request("kept", kept.prompt, kept.params.clone())
        engine.add_request("gone", gone.prompt, gone.params.clone())
        for _ in range(9):
            engine.step()
        engine.abort_request(["gone"])
        while engine.has_unfinished_requests():
            for output in engine.step():
                found = list(output.outputs[0].token_ids)
                assert output.request_id == "kept"
        engine.step()
    assert found == expected_tokens(reference, kept)
    scheduler = engine.engine_core.engine_core.scheduler
    assert not scheduler.running and not scheduler.requests
    assert not scheduler._num_left and not scheduler._fixed_plans
