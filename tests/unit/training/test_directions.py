"""Objectives of the directions at the published size, by default and as released."""

import math

import pytest

from vllm_dynin.canvas import Task
from vllm_dynin.tokens import DYNIN_OMNI
from vllm_dynin.training_ext.directions import TRAINED, DirectionObjective, objectives

NUM_ROWS = 138_752
TEXT = (Task.IMAGE_TO_TEXT, Task.VIDEO_TO_TEXT, Task.SPEECH_TO_TEXT)
IMAGE = (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE)
SPEECH = (Task.TEXT_TO_SPEECH, Task.SPEECH_TO_SPEECH, Task.VIDEO_TO_SPEECH)


def num_classes(objective):
    return sum(stop - first for first, stop in objective.columns(DYNIN_OMNI, NUM_ROWS))


@pytest.mark.parametrize(
    ("tasks", "default", "released"),
    [
        ((Task.TEXT_TO_TEXT,), 126_349, 126_349),
        (TEXT, 126_349, 138_752),
        (IMAGE, 8_192, 8_192),
        (SPEECH, 4_096 + 2, 4_211 + 2),
    ],
)
def test_number_of_classes(tasks, default, released):
    for task in tasks:
        assert num_classes(objectives()[task]) == default
        assert num_classes(objectives(reference=True)[task]) == released


def test_order_of_the_classes_of_speech():
    assert objectives()[Task.TEXT_TO_SPEECH].columns(DYNIN_OMNI, NUM_ROWS) == (
        (134_541, 138_637),
        (126_098, 126_099),
        (126_081, 126_082),
    )


def test_default_choices():
    for task, objective in objectives().items():
        is_image = task in IMAGE
        assert objective.masking == ("schedule" if is_image else "independent")
        assert objective.normalisation == ("mean" if is_image else "llada_sft")
        assert objective.is_float32 and objective.zero_above is None
        assert not objective.is_one_forced and objective.attention == "visible"
        assert (objective.schedule, objective.min_ratio) == ("cosine", 0.0)


def test_released_choices():
    made = objectives(reference=True)
    assert made[Task.TEXT_TO_TEXT].normalisation == "release"
    assert {task for task in TRAINED if made[task].is_one_forced} == {Task.TEXT_TO_TEXT}
    assert {task for task in TRAINED if made[task].is_float32} == {Task.TEXT_TO_IMAGE, *SPEECH}
    assert made[Task.TEXT_TO_IMAGE].zero_above == 10_000
    assert made[Task.IMAGE_TO_IMAGE].zero_above == math.inf
    for task in (*TEXT, *SPEECH):
        assert made[task].normalisation == "llada_sft"
        assert made[task].zero_above is None
    for task in IMAGE:
        assert made[task].normalisation == "mean"


def test_coefficients():
    made = objectives(coefficients={Task.TEXT_TO_TEXT: 0.3})
    assert made[Task.TEXT_TO_TEXT].coefficient == 0.3
    assert made[Task.IMAGE_TO_TEXT].coefficient == 1.0
    with pytest.raises(ValueError, match="coefficients for ti2ti"):
        objectives(coefficients={Task.TEXT_IMAGE_TO_TEXT_IMAGE: 1.0})
    with pytest.raises(ValueError, match=r"coefficient=-1\.0"):
        objectives(coefficients={Task.TEXT_TO_TEXT: -1.0})
    with pytest.raises(ValueError, match=r"min_ratio=1\.5"):
        DirectionObjective(masking="schedule", classes="image", normalisation="mean", min_ratio=1.5)
