"""The engine's tokens are the reference driver's, however requests share the engine."""

import random

import pytest
from helpers.engines import (
    counted_preemptions,
    environment,
    metric,
    preempting,
    start_llm,
)
from helpers.request_mix import Case, expected_tokens, generate, mixed_cases, random_prompt
from vllm.sampling_params import RequestOutputKind

from vllm_dynin.sampling.params import DenoiseParams


@pytest.fixture(scope="module")
def cases(reference):
    return mixed_cases(64, reference.config)


@pytest.fixture(scope="module")
def expected(reference, cases):
    return [expected_tokens(reference, case) for case in cases]


def test_the_mix_exercises_what_it_should(cases, expected, reference):
    """Otherwise equality would prove little."""
    vocabulary = reference.config.vocabulary
    is_cut = [
        len(tokens) < case.params.max_tokens for case, tokens in zip(cases, expected, strict=True)
    ]
    has_mask = [vocabulary.mask in tokens for tokens in expected]
    assert 5 < sum(is_cut) < 40
    assert sum(has_mask) > 3  # reference parity, the mask id itself proposed
    assert len({tuple(tokens) for tokens in expected if len(tokens) > 3}) > 40


def test_64_mixed_requests(llm, cases, expected):
    assert generate(llm, cases) == expected


def test_order_of_arrival_does_not_matter(llm, cases, expected):
    order = list(range(len(cases)))
    random.Random(5).shuffle(order)
    found = generate(llm, [cases[index] for index in order[:24]])
    assert found == [expected[index] for index in order[:24]]


def test_neighbours_do_not_matter(llm, cases, expected):
    """The same request alone, and among copies of itself with other seeds."""
    index = next(
        index
        for index, case in enumerate(cases)
        if case.params.temperature == 1.0 and len(expected[index]) > 15
    )
    case = cases[index]
    assert generate(llm, [case]) == [expected[index]]
    others = []
    for seed in (100, 101, 102):
        params = case.params.clone()
        params.seed = seed
        others.append(Case(case.prompt_ids, params))
    first, *rest = generate(llm, [case, *others])
    assert first == expected[index]
    assert all(tokens != first for tokens in rest)


def test_requests_that_are_preempted(checkpoint_folder, cases, expected):
    """A KV cache of 9 blocks, of which one long guided request takes 8."""
    with start_llm(checkpoint_folder, num_gpu_blocks_override=10, max_model_len=288) as llm:
        with preempting(llm, every=4) as preempted:
            assert generate(llm, cases) == expected
        assert len(preempted) >= 10
        assert metric("vllm:num_preemptions") == len(preempted)  # nothing else preempts


def test_admission_takes_blocks_for_the_canvas_too(checkpoint_folder, reference):
    """Three requests of 13 blocks each, of which 19 are free: each waits for its turn.

    Where only their prompts are reserved, newcomers are preempted and admitted over and over.
    """
    own = DenoiseParams(block_length=25, steps=16)
    cases = [
        Case(
            random_prompt(random.Random(seed), reference.config, 10),
            own.to_sampling_params(max_tokens=400, temperature=0, ignore_eos=True),
        )
        for seed in range(3)
    ]
    with start_llm(checkpoint_folder, num_gpu_blocks_override=20) as llm:
        steps, prompt_passes = [], []
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        original = scheduler.schedule

        def schedule(*args, **kwargs):
            output = original(*args, **kwargs)
            steps.extend(output.scheduled_spec_decode_tokens)
            prompt_passes.extend(request.req_id for request in output.scheduled_new_reqs)
            return output

        scheduler.schedule = schedule
        with counted_preemptions(llm) as preempted:
            found = generate(llm, cases)
    assert not preempted
    assert len(prompt_passes) == 3
    assert len(steps) == 3 * 16
    assert found == [expected_tokens(reference, case) for case in cases]


@pytest.fixture(scope="module")
def four_equal(reference):
    """Four requests of 90 rows and 40 steps, a token each."""
    rng, own = random.Random(1), DenoiseParams(block_length=1)
    return [
        Case(
            random_prompt(rng, reference.config, 50),
            own.to_sampling_params(max_tokens=40, temperature=0, ignore_eos=True),
        )
        for _ in range(4)
    ]


def test_first_come_first_served_within_the_budget(reference, checkpoint_folder, four_equal):
    """A budget of one long request: of four running ones, two are computed in a step."""
    cases = mixed_cases(24, reference.config, seed=2, max_prompt=90)
    with start_llm(checkpoint_folder, max_model_len=256, max_num_batched_tokens=256) as llm:
        assert generate(llm, cases) == [expected_tokens(reference, case) for case in cases]
        turns, tokens = watch_turns(llm.llm_engine, four_equal)
    assert tokens == [expected_tokens(reference, case) for case in four_equal]
    # The four prompts fit together, of the denoising steps (90 rows) two do; one token a step.
    assert turns == [[0, 1]] * 40 + [[2, 3]] * 40


def test_short_answers_may_pass_long_ones(reference, checkpoint_folder, four_equal):
    """40 steps cost two places, 4 none: the third request passes the second, not the first."""
    short = [Case(case.prompt_ids, case.params.clone()) for case in four_equal]
    short[2].params.extra_args["dynin_block_length"] = 20
    short[2].params.extra_args["dynin_steps"] = 4
    with (
        environment(DYNIN_ORDER="short"),
        start_llm(checkpoint_folder, max_model_len=256, max_num_batched_tokens=256) as llm,
    ):
        turns, tokens = watch_turns(llm.llm_engine, short)
    assert tokens == [expected_tokens(reference, case) for case in short]
    first = [next(number for number, step in enumerate(turns) if who in step) for who in range(4)]
    assert first[0] < first[2] < first[1] < first[3]


def watch_turns(engine, cases):
    """Step the engine by hand: who received tokens at each step, and everyone's tokens."""
    for number, case in enumerate(cases):
        params = case.params.clone()
        params.output_kind = RequestOutputKind.DELTA
        engine.add_request(str(number), case.prompt, params)
    turns, tokens = [], [[] for _ in cases]
    while engine.has_unfinished_requests():
        outputs = engine.step()
        for output in outputs:
            tokens[int(output.request_id)] += output.outputs[0].token_ids
        turns.append([int(output.request_id) for output in outputs if output.outputs[0].token_ids])
    return [step for step in turns if step], tokens
