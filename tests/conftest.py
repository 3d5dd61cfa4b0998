"""What every tier shares: one torch thread, the tiny tokenizer and its id layout, a last word."""

from pathlib import Path

import pytest
import torch
from helpers.left_out import (  # noqa: F401
    pytest_collectreport,
    pytest_deselected,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from helpers.tiny_tokenizer import make_tokenizer
from transformers import PreTrainedTokenizerFast

from vllm_dynin.tokens import NUM_CONTROL_TOKENS, Vocabulary

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other

# Folders whose tests share a server or an engine for the session.
_SHARING = [
    Path(__file__).parent / "engine" / name for name in ("field", "http", "omni", "operating")
]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (`pytest -n 2 --dist loadgroup`): what shares an engine shares one."""
    for item in items:
        place = next((folder for folder in _SHARING if folder in item.path.parents), item.path)
        item.add_marker(pytest.mark.xdist_group(str(place)))


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
