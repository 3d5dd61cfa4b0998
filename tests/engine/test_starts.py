"""Starts as users start: no `enforce_eager`, no sizes, 72,000 rows of vocabulary.

With vLLM's profiling of memory and its warm-up. On a CPU the profile measures nothing that is freed
again, graphs are not captured, and vLLM's warm-up is called by the test, because its CPU worker
leaves it out (0.32). `packaging/compat/starts.py` tries the whole matrix, 0.33 included.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.engines import environment
from helpers.request_mix import expected_tokens, generate
from helpers.starts import COMPILED, MAX_MODEL_LEN, STARTED, questions, runner_of, warm_up
from helpers.starts import wide_checkpoint as write_wide
from vllm import LLM, EngineArgs

from vllm_dynin.reference.backbone import LLaDA, load_reference


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide(tmp_path_factory.mktemp("wide") / "llada")


@pytest.fixture(scope="module")
def wide_reference(wide_checkpoint: Path) -> LLaDA:
    return load_reference(wide_checkpoint)


@pytest.fixture(scope="module")
def started(wide_checkpoint: Path) -> Iterator[LLM]:
    """With a budget as long as the context, as our own hook sets it on smaller GPUs."""
    with environment(VLLM_ENABLE_V1_MULTIPROCESSING="0"):
        llm = LLM(str(wide_checkpoint), max_num_batched_tokens=MAX_MODEL_LEN, **STARTED)
    warm_up(llm)
    yield llm


def test_it_answers_as_the_reference(started, wide_reference):
    cases = questions(wide_reference.config)
    assert generate(started, cases) == [expected_tokens(wide_reference, case) for case in cases]


def test_nothing_is_sized_by_the_width_of_the_canvas(started):
    """Draft tokens [requests, 1] and no bitmask of grammars, for a canvas of 512 slots."""
    runner = runner_of(started)
    assert runner.decode_query_len == 1
    assert runner.req_states.draft_tokens.shape == (runner.max_num_reqs, 1)
    assert not vars(runner.structured_outputs_worker)


def test_the_name_of_vllms_worker_of_grammars_is_put_back(started):
    from vllm.v1.worker.gpu import model_runner, structured_outputs

    assert model_runner.StructuredOutputsWorker is structured_outputs.StructuredOutputsWorker


def test_requests_and_blocks_follow_from_the_budget(started):
    runner = runner_of(started)
    assert runner.max_num_reqs == 16
    (group,) = runner.kv_cache_config.kv_cache_groups
    rows = runner.kv_cache_config.num_blocks * group.kv_cache_spec.block_size
    assert MAX_MODEL_LEN <= rows < MAX_MODEL_LEN + 19 * group.kv_cache_spec.block_size


@pytest.mark.parametrize(
    ("asked", "found"), [({}, 21), ({"max_num_seqs": 5}, 5), ({"max_num_seqs": 127}, 127)]
)
def test_max_num_seqs(wide_checkpoint, asked, found):
    with environment(VLLM_ENABLE_V1_MULTIPROCESSING="0"):
        arguments = EngineArgs(
            str(wide_checkpoint), max_num_batched_tokens=8192, **(STARTED | asked)
        )
        assert arguments.create_engine_config().scheduler_config.max_num_seqs == found


def test_a_size_of_the_kv_cache_that_was_asked_for_holds(wide_checkpoint):
    with environment(VLLM_ENABLE_V1_MULTIPROCESSING="0"):
        llm = LLM(str(wide_checkpoint), kv_cache_memory_bytes=1 << 24, block_size=32, **STARTED)
    config = runner_of(llm).kv_cache_config
    # 2 layers of keys and values, 2 heads of 32 float32 numbers: 1,024 bytes a row
    assert config.num_blocks == (1 << 24) // (32 * 1024)


def test_compiled_it_answers_the_same(wide_checkpoint, wide_reference):
    """Traced by the compiler; VLLM_CPU_CI_ENV leaves out its code generator, which takes long."""
    with environment(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_CI_ENV="1"):
        llm = LLM(str(wide_checkpoint), **STARTED, **COMPILED)
    warm_up(llm)
    model = runner_of(llm).model
    assert model.transformer.compiled and not model.transformer.do_not_compile
    cases = questions(wide_reference.config)
    assert generate(llm, cases) == [expected_tokens(wide_reference, case) for case in cases]
