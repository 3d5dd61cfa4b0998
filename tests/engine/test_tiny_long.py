"""The shipped model with long answers in the engine: the reference's tokens, and right ones."""

import pytest
import torch
from helpers.engines import start_llm
from helpers.request_mix import Case, expected_tokens, generate
from transformers import AutoTokenizer

import vllm_dynin
from vllm_dynin.reference.backbone import load_reference
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.training_ext.small_text import encode_prompt
from vllm_dynin.training_ext.tiny_long.tasks import held_out

SHIPPED = vllm_dynin.__path__[0] + "/assets/tiny-long"


@pytest.mark.slow
def test_engine_answers_as_the_reference():
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    questions = list(held_out(seed=9, per_task=2))
    cases = [
        Case(
            encode_prompt(asked, tokenizer),
            DenoiseParams(block_length=block, steps=steps).to_sampling_params(
                max_tokens=96, temperature=0.0
            ),
        )
        for asked in questions
        for block, steps in ((16, None), (32, 48))
    ]
    with start_llm(SHIPPED) as llm:
        found = generate(llm, cases)
    reference = load_reference(SHIPPED, torch.float32)
    assert found == [expected_tokens(reference, case) for case in cases]
    exact = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in found[::2]]
    right = [text == asked.answer for text, asked in zip(exact, questions, strict=True)]
    assert sum(right) >= 8, list(zip(exact, questions, strict=True))
