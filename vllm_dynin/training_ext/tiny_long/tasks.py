"""Five tasks with long answers: questions, right answers, and the split into trained and held out.

What makes an answer hard to write in parallel differs from task to task:

- `sort`: which record comes next depends on all of them, its number on the word before it;
- `sum`: the carry runs through all columns, and the total is read off the columns at the end;
- `count`: each number follows from the one before it, and numbers have one word or two;
- `follow`: each word follows from the one before it by a link of the question and nothing else;
- `recite`: known by heart, but for two words that are exchanged or left out.

Words are one token each, so are digits and commas. Every text here is our own, so a checkpoint
trained on it carries no terms but the package's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Task = Literal["sort", "sum", "count", "follow", "recite"]
TASKS: tuple[Task, ...] = ("sort", "sum", "count", "follow", "recite")

# fmt: off
WORDS: tuple[str, ...] = (
    "apple", "bear", "boat", "bread", "cake", "chair", "cloud", "cow", "desk", "door", "egg",
    "fish", "garden", "hand", "hill", "house", "key", "lake", "leaf", "map", "moon", "mouse",
    "nest", "owl", "pear", "queen", "river", "rose", "ship", "star", "tree", "zebra",
)

SONGS: Mapping[str, str] = {
    "water": (
        "down the river went a boat and in the boat there sat an owl the owl had bread the owl had "
        "cake and all along the river the boat went on until the lake"
    ),
    "night": (
        "a star came up behind the hill another star above the house the moon came up and all was "
        "still but for the hill and for a mouse who saw the moon behind a star"
    ),
    "market": (
        "one apple for the queen and one pear for the cow one rose for the house and one apple for "
        "the bear now who has an egg for the queen and a rose for me and the cow"
    ),
    "tower": (
        "open the door with the old key and there is a chair and a map on the chair under the map "
        "is a door to the garden and there the tree has a nest and a key"
    ),
}
"""Known by heart. Words of `WORDS` in them may be exchanged or left out."""

_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on

COLUMNS = "abcdefgh"
"""Names of the columns of a sum, the ones first."""
MAX_STEP = 6
"""Largest step of `count`."""

_HELD_OUT_IN = 10  # one question in this many is never trained on


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question and the only right answer.

    Args:
        task: which of the five.
        messages: role and content of each turn; one turn, the user's.
        answer: what the assistant is to say.
        key: what decides on which side of the split it lies.
    """

    task: Task
    messages: tuple[Mapping[str, str], ...]
    answer: str
    key: str


def number_words(number: int) -> str:
    """A number from 0 to 99 in words, without a hyphen.

    Raises:
        ValueError: it lies outside.
    """
    if not 0 <= number < 100:
        raise ValueError(f"{number} does not lie in 0 .. 99")
    if number < len(_UNITS):
        return _UNITS[number]
    tens, units = divmod(number, 10)
    return _TENS[tens - 2] + (f" {_UNITS[units]}" if units else "")


def is_held_out(key: str) -> bool:
    """Whether questions with this key are kept from training."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") % _HELD_OUT_IN == 0


# --- the tasks: each draws a question whose answer has about so many tokens -----------------------


def _question(task: Task, content: str, answer: str, key: str) -> Question:
    return Question(
        task=task,
        messages=({"role": "user", "content": content},),
        answer=answer,
        key=f"{task} {key}",
    )


def sort(rng: random.Random, num_tokens: int) -> Question:
    """Records of a word and a digit, ordered by the word; split by the set of words."""
    words = rng.sample(WORDS, _clip(num_tokens // 3, 1, 14))
    record = {word: rng.randint(0, 9) for word in words}
    return _question(
        "sort",
        f"Sort by name: {_records(record)}",
        f"sorted {_records(dict(sorted(record.items())))}",
        " ".join(sorted(words)),
    )


def _records(record: Mapping[str, int]) -> str:
    return ", ".join(f"{word} {digit}" for word, digit in record.items())


def add(rng: random.Random, num_tokens: int) -> Question:
    """A sum worked column by column, the ones first; split by the digits.

    A column of the answer reads: name, both digits, the carry that comes in, the digit written,
    the carry that goes out.
    """
    columns = COLUMNS[: _clip(num_tokens // 11, 1, 7)]
    pairs = [(rng.randint(0, 9), rng.randint(0, 9)) for _ in columns]
    carry, worked, written = 0, [], []
    for name, (a, b) in zip(columns, pairs, strict=True):
        total = a + b + carry
        worked.append(f"{name} {a} {b} {carry} = {total % 10} carry {total // 10}")
        written.append(f"{name} {total % 10}")
        carry = total // 10
    asked = ", ".join(f"{name} {a} {b}" for name, (a, b) in zip(columns, pairs, strict=True))
    return _question(
        "sum",
        f"Add the columns: {asked}",
        f"column {', '.join(worked)} so {carry} {' '.join(reversed(written))}",
        asked,
    )


def count(rng: random.Random, num_tokens: int) -> Question:
    """Numbers in words, up or down in equal steps; split by first number, step and direction."""
    step = rng.randint(1, MAX_STEP)
    how_many = _clip(num_tokens * 10 // 28, 2, 1 + 98 // step)
    span = step * (how_many - 1)
    first, is_up = rng.randint(1, 99 - span), rng.random() < 0.5
    numbers = [first + step * index for index in range(how_many)]
    if not is_up:
        numbers.reverse()
    words = [number_words(number) for number in numbers]
    direction = "up" if is_up else "down"
    return _question(
        "count",
        f"Count {direction} from {words[0]} to {words[-1]} by {number_words(step)}",
        f"count {', '.join(words)}",
        f"{direction} {numbers[0]} {step}",
    )


def follow(rng: random.Random, num_tokens: int) -> Question:
    """A chain of words through links that are given in any order; split by its first five words."""
    chain = rng.sample(WORDS, _clip(num_tokens // 2, 2, 20))
    links = [f"{a} {b}" for a, b in pairwise(chain)]
    rng.shuffle(links)
    return _question(
        "follow",
        f"Follow the links from {chain[0]}: {', '.join(links)}",
        f"from {' to '.join(chain)}",
        " ".join(chain[:5]),
    )


def recite(rng: random.Random, num_tokens: int) -> Question:
    """A song with one word exchanged and another left out; split by all of it."""
    del num_tokens  # a song has its length
    name = rng.choice(tuple(SONGS))
    song = SONGS[name].split()
    choices = sorted(set(song) & set(WORDS))
    said, left_out = rng.sample(choices, 2)
    instead = rng.choice([word for word in WORDS if word not in choices])
    words = [instead if word == said else word for word in song if word != left_out]
    return _question(
        "recite",
        f"Recite {name}, say {instead} for {said}, leave out {left_out}",
        f"song {' '.join(words)}",
        f"{name} {instead} {said} {left_out}",
    )


def _clip(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


_DRAW: Mapping[Task, Callable[[random.Random, int], Question]] = {
    "sort": sort,
    "sum": add,
    "count": count,
    "follow": follow,
    "recite": recite,
}


def question(rng: random.Random, task: Task, num_tokens: int, *, is_for_training: bool) -> Question:
    """Draw a question on the wanted side of the split.

    Args:
        rng: what is drawn with.
        task: which of the five.
        num_tokens: about how many tokens the answer is to have; a task keeps to its own bounds.
        is_for_training: the side.
    """
    while True:
        drawn = _DRAW[task](rng, num_tokens)
        if is_held_out(drawn.key) != is_for_training:
            return drawn


MIN_ANSWER, MAX_ANSWER = 34, 60
"""Lengths asked for at evaluation. Counting in short words comes out shorter than asked for."""
LEAST = 32
"""Tokens of the shortest answer at evaluation; with lead-in and bounds the longest seen has 62."""


def num_tokens_of(answer: str) -> int:
    """Tokens of an answer: each word, digit and comma is one."""
    return len(answer.replace(",", " ,").split())


def held_out(seed: int, per_task: int, tasks: tuple[Task, ...] = TASKS) -> Iterator[Question]:
    """Questions that were never trained on, `per_task` of each task, lengths spread evenly.

    Args:
        seed: equal seeds give equal questions.
        per_task: how many of each task.
        tasks: which tasks, in this order.
    """
    for task in tasks:
        rng = random.Random(f"held out {task} {seed}")
        for index in range(per_task):
            share = (index + 0.5) / per_task
            num_tokens = round(MIN_ANSWER + share * (MAX_ANSWER - MIN_ANSWER))
            drawn = question(rng, task, num_tokens, is_for_training=False)
            while num_tokens_of(drawn.answer) < LEAST:
                drawn = question(rng, task, num_tokens, is_for_training=False)
            yield drawn


def tokenizer_texts() -> Iterator[str]:
    """What the pieces are learnt from: every word in each place it can have."""
    rng = random.Random("tokenizer")
    for task in TASKS:
        for _ in range(40):
            drawn = question(rng, task, rng.randint(8, MAX_ANSWER), is_for_training=True)
            yield f"user\n{drawn.messages[0]['content']}"
            yield f"assistant\n{drawn.answer}"
    for word in (*WORDS, *_UNITS, *_TENS, *COLUMNS, *" ".join(SONGS.values()).split()):
        yield from [f"a {word} {word}"] * 4
    for digit in range(10):
        yield from [f"a {digit} {digit}"] * 4
