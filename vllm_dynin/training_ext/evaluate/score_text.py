"""Figures of the directions that are answered in text."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_dynin.api import Result
from vllm_dynin.training_ext.evaluate.bench import Bench
from vllm_dynin.training_ext.evaluate.figures import Comparison, Measured
from vllm_dynin.training_ext.evaluate.questions import DRAWN_VOICE, USUAL_VOICE, Question
from vllm_dynin.training_ext.evaluate.seeing import share
from vllm_dynin.training_ext.evaluate.words import best_constant, first_of, word_error_rate
from vllm_dynin.training_ext.tiny.digits import DIRECTIONS
from vllm_dynin.training_ext.tiny.words import DIGIT_WORDS


def texts(results: Sequence[Result]) -> list[str]:
    """The answers as text; none is the empty text."""
    return [(result.text or "").strip() for result in results]


def score_text(questions: Sequence[Question], results: Sequence[Result]) -> list[Measured]:
    """Text to text: answers that are right to the letter, against copying the words."""
    expected = [question.expected for question in questions]
    copied = [question.plain or "" for question in questions]
    copying = Comparison(name="copying the words", value=_equal(expected, copied))
    return [Measured(name="exact", value=_equal(expected, texts(results)), baseline=copying)]


def score_image(
    questions: Sequence[Question], results: Sequence[Result], bench: Bench
) -> list[Measured]:
    """Image to text: the first digit named, against the most frequent one."""
    side = bench.media_config.image_resolution
    expected = [question.expected for question in questions]
    seen = bench.digit_judge.judge([bench.seen(q.pictures, side) for q in questions])
    return [
        _named("digit", DIGIT_WORDS, expected, texts(results), seen),
        Measured(name="exact", value=_equal(expected, texts(results))),
    ]


def score_video(
    questions: Sequence[Question], results: Sequence[Result], bench: Bench
) -> list[Measured]:
    """Video to text: digit and direction, each on its own, and the whole answer."""
    expected, answered = [question.expected for question in questions], texts(results)
    clips = [bench.seen_clip(question.pictures) for question in questions]
    digit_judge, direction_judge = bench.clip_judges
    return [
        _named("digit", DIGIT_WORDS, expected, answered, digit_judge.judge(clips)),
        _named("direction", tuple(DIRECTIONS), expected, answered, direction_judge.judge(clips)),
        Measured(name="exact", value=_equal(expected, answered)),
    ]


def score_recording(
    questions: Sequence[Question], results: Sequence[Result], bench: Bench
) -> list[Measured]:
    """Speech to text: word error rate of the usual voice and of drawn ones, and exact answers.

    The ceiling is the closed-vocabulary recogniser on what the codec leaves of the recordings.
    """
    figures = []
    for variant, suffix in ((USUAL_VOICE, ""), (DRAWN_VOICE, ", drawn voices")):
        pairs = zip(questions, results, strict=True)
        chosen = [(question, result) for question, result in pairs if question.variant == variant]
        asked, answers = zip(*chosen, strict=True)
        figures += _transcribed(asked, answers, bench, suffix)
    return figures


def _transcribed(
    questions: Sequence[Question], results: Sequence[Result], bench: Bench, suffix: str
) -> list[Measured]:
    expected, answered = [question.expected for question in questions], texts(results)
    constant = best_constant(expected)
    _, sphinx = bench.listeners
    heard = [
        bench.heard_again(sphinx, question.sound)
        for question in questions
        if question.sound is not None
    ]
    return [
        Measured(
            name=f"WER{suffix}",
            value=word_error_rate(expected, answered),
            baseline=Comparison(
                name="the same answer always",
                value=word_error_rate(expected, [constant] * len(expected)),
            ),
            ceiling=Comparison(
                name=f"{sphinx.name} after the codec", value=word_error_rate(expected, heard)
            ),
        ),
        Measured(name=f"exact{suffix}", value=_equal(expected, answered)),
    ]


def _equal(expected: Sequence[str], answered: Sequence[str]) -> float:
    return share(a == b for a, b in zip(expected, answered, strict=True))


def _named(
    name: str,
    known: Sequence[str],
    expected: Sequence[str],
    answered: Sequence[str],
    seen: Sequence[str],
) -> Measured:
    """Share of answers whose first word out of `known` is that of the expected answer."""
    wanted = [first_of(known, text) or "" for text in expected]
    return Measured(
        name=name,
        value=_equal(wanted, [first_of(known, text) or "" for text in answered]),
        baseline=Comparison(
            name="the same answer always",
            value=_equal(wanted, [best_constant(wanted)] * len(wanted)),
        ),
        ceiling=Comparison(
            name="a support vector machine after the codec", value=_equal(wanted, seen)
        ),
    )
