"""Every direction is answered as the reference driver answers it, whatever shares the engine."""

import pytest
from helpers.engines import preempting
from helpers.omni_mix import expected, mixed_directions, plan_of, run, tokens_of

from vllm_dynin.canvas import Task
from vllm_dynin.processors.templates import DIRECTIONS
from vllm_dynin.tokens import Modality

NUM_CASES = 60


@pytest.fixture(scope="module")
def cases(omni_reference):
    return mixed_directions(omni_reference.config, NUM_CASES)


@pytest.fixture(scope="module")
def answers(omni_reference, cases):
    return [expected(omni_reference, case) for case in cases]


def test_the_mix_exercises_what_it_should(cases, answers, omni_reference):
    plans = [plan_of(case, omni_reference.config) for case in cases]
    seen = {
        (plan.canvas.task, plan.canvas.parity, case.params.temperature > 0)
        for plan, case in zip(plans, cases, strict=True)
    }
    assert len(seen) == len(Task) * 2 * 2
    guided = {plan.canvas.task for plan in plans if plan.canvas.unconditional}
    assert guided == set(Task)
    infilled = {
        plan.canvas.task
        for plan, case in zip(plans, cases, strict=True)
        if "dynin_target_token_ids" in case.params.extra_args
    }
    assert {DIRECTIONS[task].output for task in infilled} == {
        Modality.TEXT,
        Modality.IMAGE,
        Modality.SPEECH,
    }
    assert len({plan.canvas.num_slots for plan in plans}) > 8
    assert len({tuple(answer) for answer in answers}) == NUM_CASES
    is_cut = [
        len(answer) < plan.canvas.regions[-1].stop
        for answer, plan in zip(answers, plans, strict=True)
    ]
    assert sum(is_cut) >= 2


def test_batches_of_32(omni, cases, answers):
    assert tokens_of(run(omni, cases)) == answers


def test_alone(omni, cases, answers):
    for index in range(0, NUM_CASES, 7):  # coprime to the number of directions
        assert tokens_of(run(omni, [cases[index]])) == [answers[index]]


def test_turns_and_preemption(tight, cases, answers):
    with preempting(tight) as preempted:
        assert tokens_of(run(tight, cases)) == answers
    assert len(preempted) >= 10
