"""The word tasks: prompts, answers, and the split into training and held-out combinations.

Every text here is our own, so a checkpoint trained on it carries no terms but the package's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Operation = Literal["copy", "reverse", "sort"]
OPERATIONS: tuple[Operation, ...] = ("copy", "reverse", "sort")

# fmt: off
WORDS: tuple[str, ...] = (
    "apple", "ball", "bear", "bird", "boat", "book", "bread", "bus", "cake", "car", "cat",
    "chair", "cloud", "corn", "cow", "cup", "desk", "dog", "door", "duck", "egg", "farm", "fish",
    "frog", "garden", "goat", "hand", "hat", "hill", "horse", "house", "key", "king", "kite",
    "lake", "lamp", "leaf", "lion", "map", "milk", "moon", "mouse", "nest", "ocean", "owl",
    "paper", "pear", "pen", "queen", "rain", "ring", "river", "road", "rose", "sand", "ship",
    "shoe", "snow", "star", "sun", "tiger", "tree", "water", "zebra",
)
# fmt: on

PHRASES: dict[Operation, tuple[str, ...]] = {
    "copy": (
        "Copy these words:",
        "Repeat these words:",
        "Say this again:",
        "Write the same words:",
    ),
    "reverse": (
        "Reverse these words:",
        "Write these words in reverse order:",
        "Say this backwards:",
        "Turn this list around:",
    ),
    "sort": (
        "Sort these words:",
        "Sort these words alphabetically:",
        "Put these words in alphabetical order:",
        "Order these words from a to z:",
    ),
}

SYSTEM_PROMPT = "You are a helpful assistant."
MIN_WORDS, MAX_WORDS = 2, 4

_HELD_OUT_IN = 10  # one set of words in this many is never trained on


@dataclass(frozen=True, kw_only=True)
class Example:
    """One conversation and the answer to its last turn.

    Args:
        messages: role and content of each turn, the last one the user's.
        answer: what the assistant is to say.
        operation: of the last turn.
        words: of the last turn, in the order of the prompt.
    """

    messages: tuple[Mapping[str, str], ...]
    answer: str
    operation: Operation
    words: tuple[str, ...]


def carry_out(operation: Operation, words: Sequence[str]) -> list[str]:
    """The words in the order the operation asks for."""
    if operation == "reverse":
        return list(reversed(words))
    return sorted(words) if operation == "sort" else list(words)


def is_held_out(words: Sequence[str]) -> bool:
    """Whether this set of words, in whatever order, is kept from training. One word never is."""
    if len(words) < MIN_WORDS:
        return False
    digest = hashlib.sha256(" ".join(sorted(words)).encode()).digest()
    return int.from_bytes(digest[:4], "big") % _HELD_OUT_IN == 0


def plain_example(
    rng: random.Random, operation: Operation, num_words: int, *, is_for_training: bool
) -> Example:
    """One user turn with distinct words whose set lies on the wanted side of the split."""
    words = tuple(rng.sample(WORDS, num_words))
    while is_held_out(words) == is_for_training:
        words = tuple(rng.sample(WORDS, num_words))
    return Example(
        messages=(_user(f"{rng.choice(PHRASES[operation])} {' '.join(words)}"),),
        answer=" ".join(carry_out(operation, words)),
        operation=operation,
        words=words,
    )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What stands around the task. One batch has one setting, so that its rows are of like length.

    Args:
        has_system_prompt: the conversation opens with one.
        has_earlier_turn: another task was asked and answered before.
    """

    has_system_prompt: bool = False
    has_earlier_turn: bool = False


def draw_setting(rng: random.Random) -> Setting:
    """Mostly a plain question; each variation in one batch of ten."""
    return Setting(
        has_system_prompt=rng.random() < 0.1,
        has_earlier_turn=rng.random() < 0.1,
    )


def training_example(rng: random.Random, operation: Operation, setting: Setting) -> Example:
    """A training example of 1 to 4 words; one in ten is polite, one in ten ends in a full stop."""
    num_words = rng.choices(range(1, MAX_WORDS + 1), weights=(1, 3, 4, 4))[0]
    example = plain_example(rng, operation, num_words, is_for_training=True)
    prompt = example.messages[0]["content"]
    if rng.random() < 0.1:
        prompt = f"Please {prompt[0].lower()}{prompt[1:]}"
    if rng.random() < 0.1:
        prompt += "."
    messages: list[Mapping[str, str]] = [_user(prompt)]
    if setting.has_earlier_turn:
        earlier = plain_example(
            rng, rng.choice(OPERATIONS), rng.randint(1, 3), is_for_training=True
        )
        messages = [*earlier.messages, _assistant(earlier.answer), *messages]
    if setting.has_system_prompt:
        messages.insert(0, {"role": "system", "content": SYSTEM_PROMPT})
    return replace(example, messages=tuple(messages))


def held_out_examples(seed: int, per_kind: int) -> Iterator[Example]:
    """Plain examples of unseen combinations: `per_kind` of each operation and 2 to 4 words."""
    rng = random.Random(f"held out {seed}")
    for operation in OPERATIONS:
        for num_words in range(MIN_WORDS, MAX_WORDS + 1):
            for _ in range(per_kind):
                yield plain_example(rng, operation, num_words, is_for_training=False)


def tokenizer_texts() -> Iterator[str]:
    """What the pieces are learnt from: every phrase, and every word in each place it can have."""
    for phrases in PHRASES.values():
        for phrase in phrases:
            yield from (f"user\n{phrase} ", f"user\nPlease {phrase[0].lower()}{phrase[1:]} ")
    yield from (SYSTEM_PROMPT, "system\n", "assistant\n")
    for word in WORDS:
        yield from [f"{word} {word}"] * 4


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}
