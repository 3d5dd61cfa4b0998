"""Requests that end early, arrive in odd moments, or fail: nothing of them stays behind."""

import random

import pytest
from helpers.engines import metric, preempting, start_llm
from helpers.request_mix import Case, expected_tokens, generate, mixed_cases, random_prompt
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from vllm_dynin.report import REPORT
from vllm_dynin.sampling.params import DenoiseParams


def core_of(llm):
    return llm.llm_engine.engine_core.engine_core


def state_of(llm):
    worker = core_of(llm).model_executor.driver_worker.worker
    return worker.model_runner.model_state


def num_free_blocks(llm):
    return core_of(llm).scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


def assert_nothing_left(llm, num_free):
    scheduler = core_of(llm).scheduler
    assert not scheduler.running and not scheduler.waiting and not scheduler.requests
    assert not scheduler._num_slots and not scheduler._is_denoising and not scheduler._media
    assert num_free_blocks(llm) == num_free
    # Workers hear of a finished request with the next step that computes anything: let them.
    llm.generate({"prompt_token_ids": [5]}, SamplingParams(max_tokens=2), use_tqdm=False)
    assert len(state_of(llm).slots) <= 1


def test_a_kept_trajectory_is_no_view_of_the_store(llm, reference):
    """The next request writes its canvas into the same cells."""
    first, second = slow_case(reference, 2), slow_case(reference, 5)
    options = DenoiseParams(block_length=1, trajectory=True)
    params = options.to_sampling_params(max_tokens=16, temperature=0.0, ignore_eos=True)
    (output,) = llm.generate([first.prompt], [params], use_tqdm=False)
    llm.generate([case.prompt for case in (second, first, second, first)], params.clone())
    name = output.kv_transfer_params[REPORT]["trajectory"]
    _, ids = state_of(llm).trajectories.peek(name)
    assert ids == list(output.outputs[0].token_ids)


def slow_case(reference, number, **standard):
    """48 tokens, one a step, a block each."""
    rng = random.Random(number)
    standard = {"max_tokens": 48, "temperature": 0.0, "ignore_eos": True} | standard
    own = DenoiseParams(block_length=1, cfg_scale=1.0 if number % 2 else None)
    return Case(random_prompt(rng, reference.config, 20), own.to_sampling_params(**standard))


@pytest.fixture
def num_free(llm):
    """Blocks that are free while nothing runs."""
    assert not llm.llm_engine.has_unfinished_requests()
    return num_free_blocks(llm)


def add(llm, name, case):
    llm.llm_engine.add_request(name, case.prompt, case.params.clone())


def finish(llm, max_steps=10_000):
    """Answers that are finished within so many steps."""
    outputs = {}
    while llm.llm_engine.has_unfinished_requests() and max_steps:
        max_steps -= 1
        for output in llm.llm_engine.step():
            if output.finished:
                outputs[output.request_id] = list(output.outputs[0].token_ids)
    return outputs


@pytest.mark.parametrize("num_steps", [0, 1, 2, 9])
def test_aborted_requests_free_their_seats_and_blocks(llm, reference, num_free, num_steps):
    """Four are running and two are waiting; the others' answers do not notice."""
    cases = {str(seed): slow_case(reference, seed) for seed in range(6)}
    for name, case in cases.items():
        add(llm, name, case)
    for _ in range(num_steps):
        llm.llm_engine.step()
    llm.llm_engine.abort_request(["0", "3", "5"])
    assert finish(llm) == {
        name: expected_tokens(reference, cases[name]) for name in ("1", "2", "4")
    }
    assert_nothing_left(llm, num_free)


def test_everything_aborted(llm, reference, num_free):
    for seed in range(6):
        add(llm, str(seed), slow_case(reference, seed))
    for _ in range(5):
        llm.llm_engine.step()
    llm.llm_engine.abort_request([str(seed) for seed in range(6)])
    finish(llm)
    assert_nothing_left(llm, num_free)


def test_late_arrivals_join_and_change_nothing(llm, reference, num_free):
    cases = {str(seed): slow_case(reference, seed, temperature=1.0, seed=seed) for seed in range(5)}
    found = {}
    for name, case in cases.items():
        add(llm, name, case)
        found |= finish(llm, max_steps=15)
    assert 0 < len(found) < 5
    found |= finish(llm)
    assert found == {name: expected_tokens(reference, case) for name, case in cases.items()}
    assert_nothing_left(llm, num_free)


def test_a_refused_request_leaves_nothing(llm, reference, num_free):
    case = slow_case(reference, 0)
    case.params.extra_args["dynin_steps"] = 0
    add(llm, "good", slow_case(reference, 1))
    with pytest.raises(VLLMValidationError, match="dynin_steps=0 is invalid"):
        add(llm, "bad", case)
    assert finish(llm) == {"good": expected_tokens(reference, slow_case(reference, 1))}
    assert_nothing_left(llm, num_free)


def test_one_bad_request_of_a_batch_takes_no_other_along(llm, reference, num_free):
    cases = [slow_case(reference, seed) for seed in range(3)]
    cases[1].params.extra_args["dynin_cfg_scale"] = -1
    with pytest.raises(VLLMValidationError, match="dynin_cfg_scale=-1 is invalid"):
        generate(llm, cases)
    assert_nothing_left(llm, num_free)
    assert generate(llm, [cases[0]]) == [expected_tokens(reference, cases[0])]


def test_preempted_requests_with_logprobs_give_each_token_once(checkpoint_folder, reference):
    cases = [slow_case(reference, seed, logprobs=1, max_tokens=60) for seed in range(8)]
    with start_llm(checkpoint_folder, num_gpu_blocks_override=10, max_model_len=288) as llm:
        with preempting(llm) as preempted:
            outputs = llm.generate(
                [c.prompt for c in cases], [c.params for c in cases], use_tqdm=False
            )
        assert len(preempted) >= 10
        scheduler = core_of(llm).scheduler
        assert not scheduler._num_slots and not scheduler._is_denoising and not scheduler._media
    for case, output in zip(cases, outputs, strict=True):
        (answer,) = output.outputs
        assert list(answer.token_ids) == expected_tokens(reference, case)
        assert len(answer.logprobs) == 60
        for token, found in zip(answer.token_ids, answer.logprobs, strict=True):
            assert found[token].logprob < 0


def test_priorities_decide_who_waits_and_change_no_answer(checkpoint_folder, reference):
    cases = mixed_cases(12, reference.config, seed=8)
    with start_llm(
        checkpoint_folder,
        num_gpu_blocks_override=10,
        max_model_len=288,
        scheduling_policy="priority",
    ) as llm:
        outputs = llm.generate(
            [case.prompt for case in cases],
            [case.params for case in cases],
            priority=[number % 3 for number in range(12)],
            use_tqdm=False,
        )
        assert metric("vllm:num_preemptions") == 0
    found = [list(output.outputs[0].token_ids) for output in outputs]
    assert found == [expected_tokens(reference, case) for case in cases]


def test_what_can_never_fit_is_refused_at_admission(checkpoint_folder, reference):
    """A context as long as the whole KV cache, to the last row."""
    with start_llm(checkpoint_folder, num_gpu_blocks_override=10, max_model_len=288) as llm:
        rng = random.Random(0)
        prompt = random_prompt(rng, reference.config, 256)
        params = DenoiseParams().to_sampling_params(max_tokens=33, temperature=0)
        with pytest.raises(VLLMValidationError, match=r"289 rows .* but 288 fit.* KV cache 288"):
            generate(llm, [Case(prompt, params)])
        params.max_tokens = 32
        case = Case(prompt, params)
        assert generate(llm, [case]) == [expected_tokens(reference, case)]
        guided = DenoiseParams(cfg_scale=1.0).to_sampling_params(max_tokens=32, temperature=0)
        with pytest.raises(VLLMValidationError, match="second stream of guidance included"):
            generate(llm, [Case(prompt[:97], guided)])
        case = Case(prompt[:96], guided)  # 128 rows are four blocks; one more would be five
        assert generate(llm, [case]) == [expected_tokens(reference, case)]


@pytest.mark.parametrize(
    ("num_prompt", "num_tokens"),
    [(1, 1), (1, 511), (511, 1), (31, 1), (32, 32), (33, 31), (64, 448)],
)
def test_lengths_around_the_limits(llm, reference, num_prompt, num_tokens):
    rng = random.Random(num_prompt)
    params = DenoiseParams(steps=5, block_length=200).to_sampling_params(
        max_tokens=num_tokens, temperature=0, ignore_eos=True
    )
    case = Case(random_prompt(rng, reference.config, num_prompt), params)
    assert generate(llm, [case]) == [expected_tokens(reference, case)]
