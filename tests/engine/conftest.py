"""Checkpoints, reference models and engines, each made once for the whole tier."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.engines import start_llm
from helpers.tiny_checkpoint import tiny_config, write_checkpoint
from vllm import LLM

from vllm_dynin.reference.backbone import LLaDA, load_reference


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is of the engine tier."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop for engines with processes of their own."""
    loop = asyncio.new_event_loop()
    yield loop
    tasks = asyncio.all_tasks(loop)  # vLLM leaves its readers waiting
    for task in tasks:
        task.cancel()
    if tasks:  # an empty gather would belong to no loop
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-only checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "llada", tiny_config())


@pytest.fixture(scope="session")
def reference(checkpoint_folder: Path) -> LLaDA:
    """The same checkpoint in plain PyTorch."""
    return load_reference(checkpoint_folder)


@pytest.fixture(scope="session")
def llm(checkpoint_folder: Path) -> Iterator[LLM]:
    """The engine most tests share."""
    with start_llm(checkpoint_folder) as llm:
        yield llm
