"""dynin-tiny, which knows what it is shown and told: one server and one engine in this process.

What people send is judged here by what is in it, the digit, the words and the motion, on every way
in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.engines import start_llm
from helpers.server import DYNIN_SERVE, Server, serve
from vllm import LLM

import vllm_dynin

DYNIN_TINY = Path(vllm_dynin.__file__).parent / "assets" / "dynin-tiny"
ROWS, BLOCKS, REQUESTS = 1_024, 512, 16


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`vllm-dynin serve` on it."""
    log = tmp_path_factory.mktemp("tiny") / "log.txt"
    sizes = ("--max-model-len", str(ROWS), "--num-gpu-blocks-override", str(BLOCKS))
    requests = ("--max-num-seqs", str(REQUESTS))
    with serve(DYNIN_TINY, log, *sizes, *requests, program=DYNIN_SERVE) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_llm() -> Iterator[LLM]:
    """The `LLM` of vLLM on it."""
    with start_llm(
        DYNIN_TINY, max_model_len=ROWS, max_num_seqs=REQUESTS, num_gpu_blocks_override=BLOCKS
    ) as llm:
        yield llm
