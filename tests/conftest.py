"""What every tier shares: one torch thread, the tiny tokenizer and its id layout, a last word."""

import pytest
import torch
from helpers.left_out import (  # noqa: F401
    pytest_collectreport,
    pytest_deselected,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from helpers.processes import pytest_xdist_make_scheduler  # noqa: F401
from helpers.tiny_tokenizer import make_tokenizer
from transformers import PreTrainedTokenizerFast

from vllm_dynin.tokens import NUM_CONTROL_TOKENS, Vocabulary

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def vocabulary(tokenizer) -> Vocabulary:
    return Vocabulary(
        num_text_pieces=len(tokenizer) - NUM_CONTROL_TOKENS,
        num_image_codes=32,
        num_speech_units=16,
    )
