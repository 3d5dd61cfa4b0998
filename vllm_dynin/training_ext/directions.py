"""What training asks of each direction: masking process, classes, normalisation, coefficient.

The default of each choice is the paper's where it makes one; `reference=True` gives what the
released code does. docs/training.md has one row for each disagreement.

Source: `forward_process` and `training/train_dynin_omni_stage*.py` of
AIDASLab/Dynin-Omni@d6e3ca8; arXiv 2604.00007 §3.2.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vllm_dynin.canvas import Task
from vllm_dynin.processors.templates import DIRECTIONS
from vllm_dynin.tokens import Modality, Vocabulary
from vllm_dynin.training_ext.attention import Attention
from vllm_dynin.training_ext.objective import AnswerLength, Normalisation

Masking = Literal["independent", "schedule"]
"""Each target on its own with the row's probability (text, speech), or exactly as many as the
decoder's schedule says (images): `objective.mask_targets` and `objective.mask_by_schedule`."""

Classes = Literal["text", "table", "image", "units", "units_and_rest"]
"""Columns of the softmax: text and control tokens; every row of the table; image codes; speech
units, end of audio and EOS; the same with all rows behind the units, used or not."""

IdRanges = tuple[tuple[int, int], ...]
"""Half-open id ranges, in the order of the columns."""


@dataclass(frozen=True, kw_only=True)
class DirectionObjective:
    """How the targets of one direction are hidden, and what predicting them costs.

    Args:
        masking: the process.
        classes: columns of the softmax.
        normalisation: see `objective.position_weights`.
        is_per_row: each row has a denominator of its own and the loss is their mean, as in the
            released loops, where a rank's batch is one row; else the rows of a step share one.
        coefficient: weight of the direction in the total loss, 0 or more.
        schedule: mask ratio over the level, for `masking="schedule"` only.
        min_ratio: floor of that ratio.
        answer_length: what an answer's length counts, for `llada_sft`.
        is_one_forced: hide one target where the draws hid none. With 1 / p in the weights this
            makes the loss too large on average, so it is for `mean` and for the release.
        is_forced_anywhere: the forced position is any of the row, and is undone in the condition.
        is_float32: compute the cross-entropy in float32, not in the dtype of the logits.
        zero_above: a loss that is larger than this, negative or not finite becomes 0 without a
            gradient (the released code's guard for images); None lets it through, for the
            trainer to stop at.
        attention: what a position may attend to, see `attention.seen`.

    Raises:
        ValueError: the coefficient or the floor is out of range.
    """

    masking: Masking
    classes: Classes
    normalisation: Normalisation
    coefficient: float = 1.0
    schedule: str = "cosine"
    min_ratio: float = 0.0
    answer_length: AnswerLength = "region"
    is_per_row: bool = False
    is_one_forced: bool = False
    is_forced_anywhere: bool = False
    is_float32: bool = True
    zero_above: float | None = None
    attention: Attention = "visible"

    def __post_init__(self) -> None:
        if not (0 <= self.coefficient < math.inf and 0 <= self.min_ratio <= 1):
            raise ValueError(
                f"coefficient={self.coefficient}, min_ratio={self.min_ratio}: the first must be "
                "0 or more and finite, the second from 0 to 1"
            )

    def columns(self, vocabulary: Vocabulary, num_rows: int) -> IdRanges:
        """Ids of the softmax's columns.

        Args:
            vocabulary: the id layout.
            num_rows: rows of the table.
        """
        v = vocabulary
        endings = ((v.eoa, v.eoa + 1), (v.eos, v.eos + 1))
        return {
            "text": ((0, v.text.stop),),
            "table": ((0, num_rows),),
            "image": ((v.image.start, v.image.stop),),
            "units": ((v.speech.start, v.speech.stop), *endings),
            "units_and_rest": ((v.speech.start, num_rows), *endings),
        }[self.classes]


TRAINED: tuple[Task, ...] = (
    Task.TEXT_TO_IMAGE,
    Task.IMAGE_TO_IMAGE,
    Task.TEXT_TO_TEXT,
    Task.IMAGE_TO_TEXT,
    Task.VIDEO_TO_TEXT,
    Task.VIDEO_TO_SPEECH,
    Task.SPEECH_TO_TEXT,
    Task.SPEECH_TO_SPEECH,
    Task.TEXT_TO_SPEECH,
)
"""Directions with an objective, in the order of the released code's micro-batches. The mixed
answer (ti2ti), which no stage trains, has two kinds of columns and none."""


def objectives(
    *,
    reference: bool = False,
    coefficients: Mapping[Task, float] | None = None,
) -> dict[Task, DirectionObjective]:
    """The objective of every direction.

    Args:
        reference: the released code's: T2T divided by p twice, rows of T2T and of images with
            denominators of their own, the whole table as the classes of
            I2T, V2T and S2T, the unused rows among those of speech, cross-entropy in the dtype
            of the logits, the guard for images, no position forced but in T2T.
        coefficients: weights of the directions; 1 where none is given (the paper states none).

    Raises:
        ValueError: a coefficient for a direction without an objective.
    """
    given = coefficients or {}
    if unknown := [task.value for task in given if task not in TRAINED]:
        raise ValueError(
            f"coefficients for {', '.join(unknown)}; the directions with an objective are "
            f"{', '.join(task.value for task in TRAINED)}"
        )
    make = _released if reference else _default
    return {task: make(task, given.get(task, 1.0)) for task in TRAINED}


def _default(task: Task, coefficient: float) -> DirectionObjective:
    output = DIRECTIONS[task].output
    if output is Modality.IMAGE:
        return DirectionObjective(
            masking="schedule", classes="image", normalisation="mean", coefficient=coefficient
        )
    return DirectionObjective(
        masking="independent",
        classes="units" if output is Modality.SPEECH else "text",
        normalisation="llada_sft",
        coefficient=coefficient,
    )


def _released(task: Task, coefficient: float) -> DirectionObjective:
    output = DIRECTIONS[task].output
    if output is Modality.IMAGE:
        is_new = task is Task.TEXT_TO_IMAGE
        return DirectionObjective(
            masking="schedule",
            classes="image",
            normalisation="mean",
            coefficient=coefficient,
            is_per_row=True,
            is_float32=is_new,
            zero_above=1e4 if is_new else math.inf,
        )
    is_text_only = task is Task.TEXT_TO_TEXT
    is_speech = output is Modality.SPEECH
    return DirectionObjective(
        masking="independent",
        classes="units_and_rest" if is_speech else "text" if is_text_only else "table",
        normalisation="release" if is_text_only else "llada_sft",
        coefficient=coefficient,
        is_per_row=is_text_only,
        is_one_forced=is_text_only,
        is_forced_anywhere=is_text_only,
        is_float32=is_speech,
    )
