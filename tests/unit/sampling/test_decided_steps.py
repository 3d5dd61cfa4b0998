"""The record of at which step each slot was decided, held against the canvases themselves."""

from __future__ import annotations

import torch

from vllm_dynin.sampling.decided_steps import UNDECIDED, DecidedSteps

MASK = 9


def ids(*values):
    return torch.tensor(values)


def test_canvases_can_be_rebuilt_from_the_record() -> None:
    canvases = [
        ids(MASK, 4, MASK, MASK, MASK),  # slot 1 is known
        ids(MASK, 4, MASK, 7, MASK),
        ids(1, 4, MASK, 7, MASK),
        ids(1, 4, 2, 7, 3),
    ]
    record = DecidedSteps()
    record.begin(canvases[0], MASK)
    for canvas in canvases[1:]:
        record.record(canvas, MASK)
    assert record.steps() == [2, 0, 3, 1, 3]
    assert record.num_steps == 3
    final = canvases[-1].tolist()
    for step, canvas in enumerate(canvases):
        rebuilt = [
            token if own <= step else MASK for token, own in zip(final, record.steps(), strict=True)
        ]
        assert rebuilt == canvas.tolist()


def test_a_preempted_request_keeps_what_was_given_out() -> None:
    record = DecidedSteps()
    record.begin(ids(MASK, MASK, MASK), MASK)
    record.record(ids(5, MASK, 6), MASK)
    record.begin(ids(5, MASK, MASK), MASK)  # slot 2 was not given out yet
    record.record(ids(5, 7, MASK), MASK)
    assert record.steps() == [1, 2, UNDECIDED]


def test_a_record_that_never_began() -> None:
    assert DecidedSteps().steps() == []
