"""The small text model with long answers: its tasks, its split, the command."""

import random
from itertools import pairwise

import pytest
import torch
from transformers import AutoTokenizer

from vllm_dynin.checkpoint import load_config
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.processors.text_tokenizer import check_tokenizer
from vllm_dynin.processors.train_tokenizer import train_tokenizer
from vllm_dynin.training_ext.__main__ import main
from vllm_dynin.training_ext.tiny_long.recipe import batch_at, tiny_long
from vllm_dynin.training_ext.tiny_long.tasks import (
    SONGS,
    TASKS,
    WORDS,
    held_out,
    is_held_out,
    num_tokens_of,
    number_words,
    question,
    tokenizer_texts,
)

NUMBERS = {number_words(number): number for number in range(100)}


def solve(asked):
    """The answer once more, from the words of the question alone."""
    words = asked.messages[-1]["content"].replace(",", " ,").split()
    if asked.task == "sort":
        records = sorted(" ".join(words[3:]).split(" , "))
        return f"sorted {', '.join(records)}"
    if asked.task == "sum":
        columns = [part.split() for part in " ".join(words[3:]).split(" , ")]
        a, b = (int("".join(column[i] for column in reversed(columns))) for i in (1, 2))
        lines, carry = [], 0
        for power, (name, x, y) in enumerate(columns):
            digit = (a + b) // 10**power % 10
            after = (int(x) + int(y) + carry - digit) // 10
            lines.append(f"{name} {x} {y} {carry} = {digit} carry {after}")
            carry = after
        total = str(a + b).zfill(len(columns) + 1)
        names = [column[0] for column in reversed(columns)]
        said = " ".join(f"{n} {d}" for n, d in zip(names, total[1:], strict=True))
        return f"column {', '.join(lines)} so {total[0]} {said}"
    if asked.task == "count":
        text = " ".join(words)
        first, last = text.split(" from ")[1].split(" by ")[0].split(" to ")
        step = NUMBERS[text.split(" by ")[1]] * (1 if "up" in words else -1)
        stop = NUMBERS[last] + step
        return f"count {', '.join(map(number_words, range(NUMBERS[first], stop, step)))}"
    if asked.task == "follow":
        links = dict(link.split() for link in " ".join(words[5:]).split(" , "))
        at, chain = words[4].strip(":"), []
        while at is not None:
            chain.append(at)
            at = links.get(at)
        return f"from {' to '.join(chain)}"
    name, instead, said, left_out = words[1], words[4], words[6], words[-1]
    song = [word for word in SONGS[name].split() if word != left_out]
    return f"song {' '.join(instead if word == said else word for word in song)}"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(tokenizer_texts(), tiny_long().num_pieces)


def test_answers_are_right_and_long(tokenizer):
    questions = list(held_out(seed=3, per_task=200))
    assert [asked.task for asked in questions] == [task for task in TASKS for _ in range(200)]
    assert questions == list(held_out(seed=3, per_task=200))
    assert questions != list(held_out(seed=4, per_task=200))
    for asked in questions:
        assert solve(asked) == asked.answer, asked
        tokens = tokenizer.encode(asked.answer)
        assert 32 <= len(tokens) <= 62, asked
        assert tokenizer.decode(tokens) == asked.answer
        assert len(tokens) == num_tokens_of(asked.answer), asked
    for word in (*WORDS, *NUMBERS, *"0123456789"):
        assert len(tokenizer.encode(f" {word}")) == len(word.split())


def test_tokens_depend_on_those_before_them():
    """What follows is not fixed by where it stands: chains, carries, and where a number begins."""
    rng = random.Random(5)
    for _ in range(20):
        chain = question(rng, "follow", 40, is_for_training=True).answer.split(" to ")
        assert len(set(chain)) == len(chain)  # so no word says where in the chain it stands
    drawn = [question(rng, "sum", 80, is_for_training=True).answer for _ in range(300)]
    carries = [text.split(" so ")[0].replace(",", "").split()[8::8] for text in drawn]
    assert {pair for row in carries for pair in pairwise(row)} == {
        (a, b) for a in "01" for b in "01"
    }
    lengths = {
        len(line.split())
        for _ in range(40)
        for line in question(rng, "count", 60, is_for_training=True).answer.split(", ")[1:]
    }
    assert lengths == {1, 2}  # where a number stands depends on those before it


def test_training_never_sees_a_held_out_question():
    recipe = tiny_long()
    rng = random.Random(0)
    trained = {
        question(rng, TASKS[number % 5], rng.randint(6, 80), is_for_training=True).key
        for number in range(4000)
    }
    held = {asked.key for asked in held_out(0, 60)}
    assert len(held) > 250 and not trained & held
    assert all(map(is_held_out, held)) and not any(map(is_held_out, trained))
    for task in TASKS:
        keys = {f"{task} {number}" for number in range(2000)}
        assert 0.08 < sum(map(is_held_out, keys)) / len(keys) < 0.12
    assert recipe.train.seed == 0


def test_batches_hold_trained_questions_that_grow(tokenizer):
    """What a step is trained on, read back from its ids: no held-out question is among it."""
    recipe = tiny_long(num_steps=100)
    config = LLaDAConfig(text_vocab_size=len(tokenizer))
    early, late = (batch_at(recipe, config, tokenizer, step) for step in (0, 99))
    assert torch.equal(early.ids_BT, batch_at(recipe, config, tokenizer, 0).ids_BT)
    assert early.shape[1] < late.shape[1]
    held = {asked.messages[-1]["content"] for asked in held_out(0, 200)}
    for row in late.ids_BT:
        text = tokenizer.decode(row[row < config.vocabulary.num_text_pieces])
        assert "assistant" in text and not any(content in text for content in held)


def test_command_writes_a_checkpoint(tmp_path, capsys):
    out = tmp_path / "model"
    command = ["tiny-long", "--out", str(out), "--steps", "2", "--per-task", "1"]
    assert main(command) == 0
    assert "of 5 held-out questions right" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert "Exact match on 5 held-out questions" in card and "--steps 2" in card
    check_tokenizer(AutoTokenizer.from_pretrained(out), load_config(out).vocabulary)
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "exists; choose another folder" in capsys.readouterr().err
