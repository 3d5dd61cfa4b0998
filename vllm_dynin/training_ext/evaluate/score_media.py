"""Figures of the directions that are answered with an image or in speech."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from PIL import Image

from vllm_dynin.api import Result
from vllm_dynin.training_ext.evaluate.bench import Bench
from vllm_dynin.training_ext.evaluate.figures import Comparison, Measured
from vllm_dynin.training_ext.evaluate.hearing import hear_all
from vllm_dynin.training_ext.evaluate.questions import GUIDED, UNGUIDED, Question
from vllm_dynin.training_ext.evaluate.seeing import share, share_of_unique
from vllm_dynin.training_ext.evaluate.words import best_constant, word_error_rate


def score_drawing(
    questions: Sequence[Question], results: Sequence[Result], bench: Bench
) -> list[Measured]:
    """Text to image: does the judge see the digit, and are the images different?

    The ceiling is the judge on real digits that neither it nor the model learnt from; the
    baseline is one real image for every prompt.
    """
    judge = bench.digit_judge
    ceiling = Comparison(name="real test digits", value=bench.real_digits)
    figures = []
    for variant, suffix in ((GUIDED, ""), (UNGUIDED, " without guidance")):
        chosen = [(q, r) for q, r in zip(questions, results, strict=True) if q.variant == variant]
        if not chosen:
            continue
        expected = [question.expected for question, _ in chosen]
        drawn = [[_image(result)] for _, result in chosen]
        constant = best_constant(expected)
        same = Comparison(name="one image always", value=expected.count(constant) / len(expected))
        figures += [
            Measured(
                name=f"digit{suffix}",
                value=judge.accuracy(drawn, expected),
                baseline=same,
                ceiling=ceiling,
            ),
            Measured(
                name=f"unique{suffix}",
                value=share_of_unique([result.token_ids for _, result in chosen]),
            ),
        ]
    return figures


def score_edit(
    questions: Sequence[Question], results: Sequence[Result], bench: Bench
) -> list[Measured]:
    """Image to image: codes and pixels against those of the right image, and against the source."""
    side = bench.media_config.edit_resolution
    offset = bench.config.vocabulary.image.start
    right, copied, error, copied_error, codec_error = [], [], [], [], []
    for question, result in zip(questions, results, strict=True):
        (source,), target = question.pictures, cast(Image.Image, question.target)
        wanted = np.array(bench.codes(target, side))
        right.append(np.mean(np.array(result.token_ids) - offset == wanted))
        copied.append(np.mean(np.array(bench.codes(source, side)) == wanted))
        goal = target.resize((side, side))
        error.append(_pixel_error(_image(result), goal))
        copied_error.append(_pixel_error(source.resize((side, side)), goal))
        codec_error.append(_pixel_error(bench.redrawn(target, side), goal))
    copying = "copying the source"
    return [
        Measured(
            name="tokens",
            value=float(np.mean(right)),
            baseline=Comparison(name=copying, value=float(np.mean(copied))),
        ),
        Measured(
            name="pixel error",
            value=float(np.mean(error)),
            baseline=Comparison(name=copying, value=float(np.mean(copied_error))),
            ceiling=Comparison(name="the codec alone", value=float(np.mean(codec_error))),
        ),
    ]


def score_speech(
    questions: Sequence[Question], results: Sequence[Result], bench: Bench
) -> list[Measured]:
    """Text to speech: word error rate of each listener on the waveform the codec makes.

    The ceiling is the same listener on real utterances of the same texts after the codec.
    """
    expected = [question.expected for question in questions]
    spoken = [result.audio for result in results]
    made = [None if sound is None else (sound.waveform, sound.sample_rate) for sound in spoken]
    constant = [best_constant(expected)] * len(expected)
    same = Comparison(name="the same words always", value=word_error_rate(expected, constant))
    figures = []
    for listener, name in zip(bench.listeners, ("WER", "WER, second opinion"), strict=True):
        heard = hear_all(listener, made)
        real = [
            bench.heard_again(listener, question.sound)
            for question in questions
            if question.sound is not None
        ]
        figures.append(
            Measured(
                name=name,
                value=word_error_rate(expected, heard),
                baseline=same,
                ceiling=Comparison(
                    name=f"{listener.name} on real speech after the codec",
                    value=word_error_rate(expected, real),
                ),
            )
        )
    figures.append(
        Measured(
            name="exact, second opinion",
            value=share(a == b for a, b in zip(expected, heard, strict=True)),
        )
    )
    return figures


def _image(result: Result) -> Image.Image:
    image = result.image
    assert image is not None  # every answer of these directions is one
    return image


def _pixel_error(image: Image.Image, goal: Image.Image) -> float:
    """Mean absolute difference in grey levels, 0 to 255."""
    difference = np.asarray(image.convert("L"), np.float64) - np.asarray(goal.convert("L"))
    return float(np.abs(difference).mean())
