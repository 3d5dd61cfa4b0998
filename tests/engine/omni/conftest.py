"""One omnimodal checkpoint with the full vocabulary, and one engine for most tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.engines import start_llm
from helpers.omni_checkpoint import write_omni_checkpoint
from helpers.omni_inside import served_model
from vllm import LLM

from vllm_dynin.reference.backbone import LLaDA, load_reference

ENGINE = {
    "limit_mm_per_prompt": {"image": 4, "video": 2, "audio": 2},
    "max_model_len": 2560,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 2560,
    "num_gpu_blocks_override": 512,
}


@pytest.fixture(scope="session")
def omni_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint."""
    return write_omni_checkpoint(tmp_path_factory.mktemp("omni") / "dynin")


@pytest.fixture(scope="session")
def omni_reference(omni_folder: Path) -> LLaDA:
    """The checkpoint in plain PyTorch."""
    return load_reference(omni_folder)


@pytest.fixture(scope="session")
def omni(omni_folder: Path) -> Iterator[LLM]:
    """The engine. It has its codecs before the first request: later, their files may be gone."""
    with start_llm(omni_folder, **ENGINE) as llm:
        assert {"image", "speech"} <= set(vars(served_model(llm).media))
        yield llm


@pytest.fixture(scope="session")
def tight(omni_folder: Path) -> Iterator[LLM]:
    """An engine in which requests wait for one another and lose media from the cache.

    Budget, KV cache and encoder cache hold one or two of the larger requests.
    """
    with start_llm(
        omni_folder,
        max_model_len=288,
        max_num_seqs=32,
        max_num_batched_tokens=288,
        num_gpu_blocks_override=10,
    ) as llm:
        yield llm
