"""Text as a listener counts it: words without case and marks, figures written out."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jiwer

from vllm_dynin.training_ext.codecs.toy_speech_corpus import NUMBER_WORDS
from vllm_dynin.training_ext.tiny.words import DIGIT_WORDS

SPOKEN_NUMBERS: tuple[str, ...] = tuple(NUMBER_WORDS[:20])
"""zero … nineteen: what the grammar judge can hear."""

# Words that sound like a number; a recogniser without context cannot tell them apart.
_HOMOPHONES = {"to": "two", "too": "two", "for": "four", "won": "one", "ate": "eight"}


def spoken_words(text: str) -> str:
    """The words of a text in lower case, figures written out and homophones made numbers.

    Figures from 0 to 19 are one word, longer ones are read digit by digit: recognisers write
    "three seven" as "37".

    Args:
        text: as a recogniser writes it.

    Returns:
        Words with one space between them.
    """

    def spell(match: re.Match[str]) -> str:
        number = int(match[0])
        if number < len(SPOKEN_NUMBERS) and not match[0].startswith("0"):
            return f" {SPOKEN_NUMBERS[number]} "
        return " ".join(["", *(DIGIT_WORDS[int(digit)] for digit in match[0]), ""])

    spelled = re.sub(r"\d+", spell, text.lower().replace("-", " "))
    words = re.sub(r"[^a-z' ]", " ", spelled).split()
    return " ".join(_HOMOPHONES.get(word, word) for word in words)


def word_error_rate(expected: Sequence[str], heard: Sequence[str]) -> float:
    """Insertions, deletions and substitutions over the number of expected words, over all texts.

    Both sides go through `spoken_words`.

    Args:
        expected: what should be said.
        heard: what was heard; may be empty.

    Returns:
        0 where all is right; insertions can take it above 1.

    Raises:
        ValueError: the two differ in number, there is no text, or an expected one has no words.
    """
    wanted = [spoken_words(text) for text in expected]
    if not wanted or not all(wanted) or len(wanted) != len(heard):
        raise ValueError(
            f"{len(heard)} texts heard for {len(wanted)} expected ones; give as many, at least "
            "one, each with words in it"
        )
    return float(jiwer.wer(wanted, [spoken_words(text) for text in heard]))


def first_of(words: Sequence[str], text: str) -> str | None:
    """The first of these words that occurs in a text, None where none does."""
    return next((word for word in spoken_words(text).split() if word in words), None)


def best_constant(expected: Sequence[str]) -> str:
    """The answer to say to every question, if one had to be the same: the most frequent one.

    Chosen on the questions themselves, which flatters this baseline. Ties: the first in the
    alphabet.
    """
    return min(set(expected), key=lambda text: (-expected.count(text), text))
