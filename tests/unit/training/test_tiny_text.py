"""The tiny text model: its split, its tokenizer, the command, and the shipped copy."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import vllm_dynin
from vllm_dynin.checkpoint import load_config
from vllm_dynin.processors.text_tokenizer import check_tokenizer, control_strings
from vllm_dynin.processors.train_tokenizer import train_tokenizer
from vllm_dynin.reference.backbone import load_reference
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.training_ext.small_text import encode_prompt
from vllm_dynin.training_ext.tiny_text.evaluate import evaluate
from vllm_dynin.training_ext.tiny_text.tasks import (
    OPERATIONS,
    WORDS,
    carry_out,
    draw_setting,
    held_out_examples,
    is_held_out,
    tokenizer_texts,
    training_example,
)

SHIPPED = Path(vllm_dynin.__file__).parent / "assets" / "tiny-text"


def test_operations():
    words = ("moon", "cat", "tree")
    assert carry_out("copy", words) == ["moon", "cat", "tree"]
    assert carry_out("reverse", words) == ["tree", "cat", "moon"]
    assert carry_out("sort", words) == ["cat", "moon", "tree"]


def test_training_never_sees_a_held_out_combination():
    rng = random.Random(0)
    trained = set()
    for number in range(3000):
        operation = OPERATIONS[number % 3]
        example = training_example(rng, operation, draw_setting(rng))
        trained.add(frozenset(example.words))
        assert example.answer == " ".join(carry_out(operation, example.words))
    held_out = {frozenset(example.words) for example in held_out_examples(0, 40)}
    assert not trained & held_out
    assert {len(words) for words in held_out} == {2, 3, 4}
    shares = [is_held_out((a, b)) for a in WORDS for b in WORDS if a < b]
    assert 0.08 < sum(shares) / len(shares) < 0.12
    assert is_held_out(("cat", "dog")) == is_held_out(("dog", "cat"))


def test_tokenizer_has_the_layout_of_the_family(tmp_path):
    train_tokenizer(tokenizer_texts(), 512).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 512 + 269
    assert tokenizer.convert_tokens_to_ids(list(control_strings())) == list(range(512, 781))
    for word in WORDS:
        assert len(tokenizer.encode(word)) == len(tokenizer.encode(f" {word}")) == 1
    text = "Naïve 東京 <|mmu|> <think>\n\n  x"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    messages = [{"role": "user", "content": " Copy these words: cat "}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\nCopy these words: cat<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n"
    )


def test_tokenizer_sizes_are_checked():
    with pytest.raises(ValueError, match="num_pieces=255; the bytes alone take 256"):
        train_tokenizer([], 255)
    with pytest.raises(ValueError, match=r"the texts yield 25\d pieces, not num_pieces=300"):
        train_tokenizer(["ab ab"], 300)
    assert len(train_tokenizer([], 256)) == 256 + 269


def test_command_writes_a_checkpoint(tmp_path):
    out = tmp_path / "model"
    command = [sys.executable, "-m", "vllm_dynin.training_ext", "tiny-text", "--out", str(out)]
    done = subprocess.run(
        [*command, "--steps", "12", "--per-kind", "1"],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert "of 9 held-out prompts right" in done.stdout
    assert "Exact match on 9 prompts" in (out / "README.md").read_text()
    assert load_reference(out).head_weight.shape == (896, 128)
    check_tokenizer(AutoTokenizer.from_pretrained(out), load_config(out).vocabulary)
    again = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert again.returncode == 2 and "exists; choose another folder" in again.stderr


@pytest.fixture(scope="module")
def shipped():
    torch.set_num_threads(1)
    return load_reference(SHIPPED, torch.float32), AutoTokenizer.from_pretrained(SHIPPED)


@pytest.mark.parametrize(
    ("max_tokens", "options"),
    [
        (16, DenoiseParams()),
        (24, DenoiseParams(block_length=8)),
        (32, DenoiseParams(block_length=32)),
        (37, DenoiseParams()),
    ],
)
def test_shipped_model_answers_unseen_combinations(shipped, max_tokens, options):
    model, tokenizer = shipped
    examples = list(held_out_examples(seed=7, per_kind=4))
    score = evaluate(model, tokenizer, examples, max_tokens=max_tokens, options=options)
    assert score.exact_match >= 0.85, score.wrong  # 36 prompts; the card has the figure of 180


def test_shipped_prompts_are_those_a_server_builds(shipped):
    _, tokenizer = shipped
    example = next(held_out_examples(seed=7, per_kind=1))
    served = tokenizer.apply_chat_template(
        list(example.messages), add_generation_prompt=True, return_dict=False
    )
    assert served == encode_prompt(example, tokenizer)
