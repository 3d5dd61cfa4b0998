"""The judges and counts behind `vllm-dynin eval`, on answers whose score is known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vllm_dynin.training_ext.evaluate.hearing import hear_all
from vllm_dynin.training_ext.evaluate.seeing import Judge, cells, share, share_of_unique
from vllm_dynin.training_ext.evaluate.words import (
    best_constant,
    first_of,
    spoken_words,
    word_error_rate,
)
from vllm_dynin.training_ext.tiny import digits
from vllm_dynin.training_ext.tiny.words import DIGIT_WORDS


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("Three, SEVEN!", "three seven"),
        ("37", "three seven"),
        ("7.", "seven"),
        ("12", "twelve"),
        ("05", "zero five"),
        ("0", "zero"),
        ("4-2", "four two"),
        ("Too, for 8", "two four eight"),
        ("it's one", "it's one"),
        ("", ""),
        ("…", ""),
    ],
)
def test_spoken_words(written, words) -> None:
    assert spoken_words(written) == words


@pytest.mark.parametrize(
    ("expected", "heard", "rate"),
    [
        (["three seven"], ["3 7"], 0.0),
        (["three seven"], ["three"], 0.5),
        (["three seven"], [""], 1.0),
        (["one"], ["one two three"], 2.0),
        (["one two", "three"], ["one four", "three"], 1 / 3),  # over all words, not a mean of means
    ],
)
def test_word_error_rate(expected, heard, rate) -> None:
    assert word_error_rate(expected, heard) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("expected", "heard"), [([], []), (["one"], []), (["one", "!"], ["one", "two"])]
)
def test_word_error_rate_refuses_what_it_cannot_count(expected, heard) -> None:
    with pytest.raises(ValueError, match="texts heard for"):
        word_error_rate(expected, heard)


def test_first_word_of_a_kind() -> None:
    assert first_of(DIGIT_WORDS, "it is a seven, not a one") == "seven"
    assert first_of(("left", "right"), "seven moving up") is None


def test_best_constant_is_the_most_frequent_answer_and_settles_ties() -> None:
    assert best_constant(["b", "a", "b"]) == "b"
    assert best_constant(["b", "a"]) == "a"


def test_shares() -> None:
    assert share([True, False, True, True]) == 0.75
    assert share_of_unique([(1, 2), (1, 2), (2, 1), (3,)]) == 0.75
    with pytest.raises(ValueError, match="share of nothing"):
        share([])


def test_cells_are_mean_brightness() -> None:
    half = Image.new("RGB", (64, 64))
    half.paste((255, 255, 255), (0, 0, 32, 64))
    seen = cells(half).reshape(8, 8)
    assert np.array_equal(seen[0], [1, 1, 1, 1, 0, 0, 0, 0])
    assert np.array_equal(seen, np.tile(seen[0], (8, 1)))


def test_judge_knows_held_out_digits() -> None:
    """The judge is worth its verdicts: without a codec it is nearly always right."""

    def shown(indices):
        labels = [DIGIT_WORDS[digits.label(index)] for index in indices]
        return [[digits.image(index)] for index in indices], labels

    judge = Judge(*shown(range(digits.num_train())))
    pictures, labels = shown(digits.test_indices())
    assert judge.accuracy(pictures, labels) > 0.97
    assert judge.accuracy(pictures, [*labels[1:], labels[0]]) < 0.2


class _Loud:
    """Hears whether there was sound, at which rate it came, and for how long."""

    name = "loud"

    def hear(self, samples):
        return f"{len(samples)} {samples.dtype}"


def test_silence_is_heard_as_nothing_and_sound_at_one_rate() -> None:
    second = np.full(22_050, 0.1, np.float32)
    nothing = np.zeros(0, np.float32)
    heard = hear_all(_Loud(), [(second, 22_050), None, (nothing, 22_050)])
    assert heard == ["16000 float32", "", ""]


def test_recognisers_on_recorded_digits() -> None:
    """Both judges, where they are installed, on recordings of the synthesiser."""
    pytest.importorskip("faster_whisper", reason="requirements/eval.lock is not installed")
    pytest.importorskip("pocketsphinx", reason="requirements/eval.lock is not installed")
    from pathlib import Path

    from vllm_dynin.processors.codecs.audio_io import load_audio
    from vllm_dynin.training_ext.evaluate.hearing import RATE, Sphinx, Whisper

    folder = Path(__file__).parents[2] / "data" / "speech"
    said = ["one", "four", "seven", "nine"]
    sounds = [(load_audio(folder / f"rms_{word}.flac", target_rate=RATE), RATE) for word in said]
    for judge in (Whisper(), Sphinx(DIGIT_WORDS)):
        assert word_error_rate(said, hear_all(judge, sounds)) <= 0.25, judge.name
