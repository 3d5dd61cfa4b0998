"""The result of an evaluation: plain data, the same for JSON and for tables."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vllm_dynin.canvas import Task


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A value to hold a figure against."""

    name: str
    """What reaches it, e.g. `copying the source`."""

    value: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One figure on the questions of one seed."""

    name: str
    value: float
    baseline: Comparison | None = None
    """What is reached without understanding anything."""
    ceiling: Comparison | None = None
    """What is reached with the right answer in hand, through the same codec and judge."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure over all seeds; baseline and ceiling are means like the value."""

    name: str
    value: float
    by_seed: list[float]
    is_lower_better: bool = False
    bar: float | None = None
    """What a trained dynin-tiny has to reach, where that is laid down."""
    baseline: Comparison | None = None
    ceiling: Comparison | None = None

    @property
    def is_reached(self) -> bool | None:
        """Whether the bar is reached; None without one."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.is_lower_better else self.value >= self.bar


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One question and its answer, for a look."""

    asked: str
    expected: str
    answered: str


class DirectionFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured in one direction."""

    task: Task
    num_questions: int
    """Of one seed."""
    figures: list[Figure]
    ended: float
    """Share of answers that ended by themselves, not at the end of the canvas."""
    steps: float
    """Denoising steps of an answer, mean."""
    tokens_per_forward: float
    """Tokens of all answers over sequences that went through the model for them."""
    samples: list[Sample]

    def figure(self, name: str) -> Figure:
        """A figure by name; KeyError where there is none."""
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(name)


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured on one checkpoint."""

    checkpoint: str
    """Name of its folder."""
    seeds: list[int]
    vllm: str
    """Version of the engine."""
    dtype: str
    """The engine computed in."""
    engine_seconds: float
    """In the engine, over all seeds; codecs and judges come on top."""
    num_answers: int
    """Over all directions, variants and seeds; likewise the next two."""
    num_tokens: int
    num_forwards: int
    """Sequences that went through the model; two a step with guidance."""
    directions: list[DirectionFigures]

    def direction(self, task: Task) -> DirectionFigures:
        """What was measured in a direction; KeyError where it was not asked."""
        for found in self.directions:
            if found.task == task:
                return found
        raise KeyError(task)


HEADLINE: dict[Task, tuple[str, ...]] = {
    Task.TEXT_TO_TEXT: ("exact",),
    Task.IMAGE_TO_TEXT: ("digit",),
    Task.VIDEO_TO_TEXT: ("digit", "direction"),
    Task.SPEECH_TO_TEXT: ("WER",),
    Task.TEXT_TO_SPEECH: ("WER",),
    Task.TEXT_TO_IMAGE: ("digit", "unique"),
    Task.IMAGE_TO_IMAGE: ("tokens",),
}
"""The directions that are measured, and the figures that stand for each in a short table."""

BARS: dict[tuple[Task, str], float] = {
    (Task.TEXT_TO_TEXT, "exact"): 0.90,
    (Task.IMAGE_TO_TEXT, "digit"): 0.85,
    (Task.VIDEO_TO_TEXT, "digit"): 0.75,
    (Task.VIDEO_TO_TEXT, "direction"): 0.95,
    (Task.SPEECH_TO_TEXT, "WER"): 0.10,
    (Task.TEXT_TO_SPEECH, "WER"): 0.20,
    (Task.TEXT_TO_IMAGE, "digit"): 0.90,
    (Task.TEXT_TO_IMAGE, "unique"): 0.80,
    (Task.IMAGE_TO_IMAGE, "tokens"): 0.65,
}
"""What dynin-tiny is to reach."""

_LOWER_IS_BETTER = ("WER", "pixel error")


def combine(task: Task, by_seed: Sequence[Sequence[Measured]]) -> list[Figure]:
    """Figures over seeds out of those of each seed.

    Args:
        task: the direction.
        by_seed: for each seed the same figures in the same order.
    """
    figures = []
    for measured in zip(*by_seed, strict=True):
        first = measured[0]
        values = [one.value for one in measured]
        figures.append(
            Figure(
                name=first.name,
                value=_mean(values),
                by_seed=values,
                is_lower_better=first.name.startswith(_LOWER_IS_BETTER),
                bar=BARS.get((task, first.name)),
                baseline=_mean_comparison([one.baseline for one in measured]),
                ceiling=_mean_comparison([one.ceiling for one in measured]),
            )
        )
    return figures


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_comparison(found: Sequence[Comparison | None]) -> Comparison | None:
    given = [one for one in found if one is not None]
    if not given:
        return None
    return Comparison(name=given[0].name, value=_mean([one.value for one in given]))
