"""The text of the tiny world: digit words, what is asked for, and what is kept from training."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Literal

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Word of each digit: the vocabulary of every answer but for a few words about motion."""

Operation = Literal["copy", "reverse", "sort"]
PHRASES: dict[Operation, tuple[str, ...]] = {
    "copy": (
        "Copy these words:",
        "Repeat these words:",
        "Say this again:",
    ),
    "reverse": (
        "Reverse these words:",
        "Write these words in reverse order:",
        "Say this backwards:",
    ),
    "sort": (
        "Sort these numbers:",
        "Put these numbers in order:",
        "Order these numbers from small to large:",
    ),
}
OPERATIONS: tuple[Operation, ...] = ("copy", "reverse", "sort")

IMAGE_QUESTIONS = (
    "Which digit is this?",
    "What is in the picture?",
    "Please describe this input in detail.",
)
VIDEO_QUESTIONS = (
    "What happens in the clip?",
    "Which digit moves where?",
    "Please describe this input in detail.",
)
DRAW_PROMPTS = (
    "draw a {}",
    "a photo of the digit {}",
    "a handwritten {}",
    "{}",
)
"""Prompts for an image; the digit stands there as a word or as a numeral."""

MIN_WORDS, MAX_WORDS = 2, 4
_HELD_OUT_IN = 10  # one combination in this many is never trained on


def in_words(digits: Sequence[int]) -> str:
    """`(7, 3)` → `seven three`."""
    return " ".join(DIGIT_WORDS[digit] for digit in digits)


def motion(digit: int, direction: str) -> str:
    """What a clip shows: `seven moving left`."""
    return f"{DIGIT_WORDS[digit]} moving {direction}"


def carry_out(operation: Operation, digits: Sequence[int]) -> list[int]:
    """The digits in the order the operation asks for."""
    if operation == "reverse":
        return list(reversed(digits))
    return sorted(digits) if operation == "sort" else list(digits)


def _is_chosen(kind: str, digits: Sequence[int]) -> bool:
    digest = hashlib.sha256(f"{kind} {in_words(digits)}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % _HELD_OUT_IN == 0


def is_list_held_out(digits: Sequence[int]) -> bool:
    """Whether this set of digits, in whatever order, is kept from training for text to text."""
    return len(digits) >= MIN_WORDS and _is_chosen("list", sorted(digits))


def is_utterance_held_out(digits: Sequence[int]) -> bool:
    """Whether this sequence of digits is kept from training for speech, in both directions."""
    return len(digits) >= MIN_WORDS and _is_chosen("utterance", digits)


def draw_list(rng: random.Random, num_words: int, *, is_held_out: bool) -> tuple[int, ...]:
    """Distinct digits whose set lies on the wanted side of the split."""
    digits = tuple(rng.sample(range(10), num_words))
    while is_list_held_out(digits) != is_held_out:
        digits = tuple(rng.sample(range(10), num_words))
    return digits


def tokenizer_texts() -> Iterator[str]:
    """What the pieces are learnt from; every word of the world becomes a piece of its own."""
    from vllm_dynin.processors import chat
    from vllm_dynin.training_ext.tiny.digits import DIRECTIONS, EDITS

    sentences = [
        *(phrase for phrases in PHRASES.values() for phrase in phrases),
        *IMAGE_QUESTIONS,
        *VIDEO_QUESTIONS,
        *chat.TRANSCRIBE_INSTRUCTIONS,
        *chat.SPEAK_INSTRUCTIONS,
        *(prompt.format(7) for prompt in DRAW_PROMPTS),
        *(phrase for phrases in EDITS.values() for phrase in phrases),
        *("user\n", "assistant\n", "system\n", "You are a helpful assistant."),
    ]
    yield from sentences
    for word in (*DIGIT_WORDS, *map(str, range(10)), "moving", *DIRECTIONS):
        yield from [f"{word} {word}"] * 4
