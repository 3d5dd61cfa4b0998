"""One server with our routes, and an engine in this process that answers the same requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from helpers.engines import start_llm
from helpers.server import DYNIN_SERVE, Server, serve
from vllm import LLM

import vllm_dynin
from vllm_dynin import envs
from vllm_dynin.entrypoints.stand_in import write_stand_in

ROWS = 2_048
BLOCKS = 512


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights with real codecs."""
    return write_stand_in(tmp_path_factory.mktemp("stand_in") / "dynin")


@pytest.fixture(scope="session")
def routes(stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`vllm-dynin serve` on it."""
    log = tmp_path_factory.mktemp("routes") / "log.txt"
    store = {envs.IMAGE_STORE: str(tmp_path_factory.mktemp("store"))}
    sizes = ("--max-model-len", str(ROWS), "--num-gpu-blocks-override", str(BLOCKS))
    with serve(
        stand_in, log, *sizes, "--max-num-seqs", "16", program=DYNIN_SERVE, **store
    ) as server:
        yield server


@pytest.fixture(scope="session")
def api(routes: Server) -> openai.OpenAI:
    """The client people have."""
    return openai.OpenAI(base_url=f"{routes.url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def local(stand_in: Path) -> Iterator[LLM]:
    """The engine that says what answers must be."""
    with start_llm(
        stand_in, max_model_len=ROWS, max_num_seqs=16, num_gpu_blocks_override=BLOCKS
    ) as llm:
        yield llm


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`vllm-dynin serve` on the trained `dynin-tiny`, as anybody would start it."""
    folder = Path(vllm_dynin.__file__).parent / "assets" / "dynin-tiny"
    log = tmp_path_factory.mktemp("world") / "log.txt"
    sizes = ("--max-model-len", "1024", "--num-gpu-blocks-override", "256", "--max-num-seqs", "8")
    with serve(folder, log, *sizes, program=DYNIN_SERVE) as server:
        yield server
