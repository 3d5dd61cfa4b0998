"""`vllm-dynin eval` and `ablate` through the engine, on random weights: figures, counts, errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import msgspec
import pytest
from helpers.engines import start_llm
from helpers.world_checkpoint import write_world_checkpoint
from vllm import LLM

from vllm_dynin.canvas import Task
from vllm_dynin.entrypoints.engine_arguments import engine_options, measured_engine
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.training_ext.evaluate.ablations.steps import num_tokens, sweep_steps
from vllm_dynin.training_ext.evaluate.figures import Evaluation
from vllm_dynin.training_ext.evaluate.measure import evaluate
from vllm_dynin.training_ext.evaluate.questions import Settings

WRITTEN = (Task.TEXT_TO_TEXT, Task.IMAGE_TO_TEXT, Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE)
SPOKEN = (Task.SPEECH_TO_TEXT, Task.TEXT_TO_SPEECH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world_checkpoint(tmp_path_factory.mktemp("world") / "random")


@pytest.fixture(scope="module")
def world(folder: Path) -> Iterator[LLM]:
    sizes = {"max_model_len": 512, "max_num_batched_tokens": 2048, "max_num_seqs": 16}
    with start_llm(folder, **sizes, num_gpu_blocks_override=256) as llm:
        yield llm


def test_everything_written_is_measured_and_comes_out_again(world) -> None:
    settings = Settings(options={Task.IMAGE_TO_IMAGE: DenoiseParams(steps=2, cfg_scale=0.0)})
    first, second = (
        evaluate(
            world, directions=WRITTEN, limit=4, seeds=(5, 6), settings=settings, use_tqdm=False
        )
        for _ in range(2)
    )
    assert first.directions == second.directions
    assert [found.task for found in first.directions] == list(WRITTEN)
    assert {found.num_questions for found in first.directions} == {4}
    assert all(len(figure.by_seed) == 2 for d in first.directions for figure in d.figures)

    # Random weights know nothing; judge, codec and baseline do.
    assert first.direction(Task.TEXT_TO_TEXT).figure("exact").value == 0
    assert first.direction(Task.TEXT_TO_TEXT).steps == 16
    drawn = first.direction(Task.TEXT_TO_IMAGE)
    assert drawn.figure("digit").ceiling.value > 0.9
    assert drawn.figure("unique").value == 1
    assert drawn.figure("unique without guidance").value == 1
    edited = first.direction(Task.IMAGE_TO_IMAGE)
    assert edited.steps == 2
    assert edited.tokens_per_forward == 8  # 16 codes in two forwards
    pixels, tokens = edited.figure("pixel error"), edited.figure("tokens")
    assert pixels.ceiling.value < 40 < pixels.baseline.value
    assert tokens.value < 0.3 and tokens.baseline.value < 1


def test_steps_are_shared_out_over_all_directions(world) -> None:
    tasks = (Task.TEXT_TO_TEXT, Task.TEXT_TO_IMAGE)
    points = sweep_steps(
        world, settings=Settings(), limit=2, seeds=(0,), tokens_per_step=(4, 16), directions=tasks
    )
    assert [point.x for point in points] == [4, 16]
    for point in points:
        for task in tasks:
            direction = point.evaluation.direction(task)
            assert num_tokens(task, world.llm_engine.vllm_config.model_config.hf_config) == 16
            assert direction.steps == 16 / point.x


def test_directions_that_are_not_there_are_refused(llm) -> None:
    """A text-only checkpoint."""
    with pytest.raises(ValueError, match="direction 't2i' of a checkpoint of model_type 'llada'"):
        evaluate(llm, directions=[Task.TEXT_TO_IMAGE], limit=1)
    with pytest.raises(ValueError, match="at least one each"):
        evaluate(llm, seeds=(), limit=1)


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
def test_speech_is_judged_by_what_is_heard(world) -> None:
    pytest.importorskip("faster_whisper", reason="requirements/eval.lock is not installed")
    found = evaluate(world, directions=SPOKEN, limit=3, use_tqdm=False)
    for task in SPOKEN:
        rate = found.direction(task).figure("WER")
        assert rate.ceiling.value <= 0.3 < rate.value


def test_command_prints_json_of_the_schema(folder) -> None:
    command = [sys.executable, "-m", "vllm_dynin.entrypoints.cli", "eval", str(folder)]
    command += ["--directions", "t2t", "i2t", "--limit", "4", "--json", "--no-progress"]
    command += ["--set", "mmu.steps=2", "--max-num-seqs", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    schema = msgspec.json.schema(list[Evaluation])
    jsonschema.validate(found, schema, jsonschema.Draft202012Validator)
    (evaluation,) = found
    assert [direction["task"] for direction in evaluation["directions"]] == ["t2t", "mmu"]
    assert evaluation["directions"][1]["steps"] == 2


def test_engine_arguments_are_those_of_vllm() -> None:
    assert engine_options([]) == {}
    assert engine_options(["--max-num-seqs", "64", "--dtype=bfloat16"]) == {
        "max_num_seqs": 64,
        "dtype": "bfloat16",
    }
    assert measured_engine({"max_num_seqs": 2})["max_num_seqs"] == 2
    for wrong in (["--max-sequences", "4"], ["--model", "other"]):
        with pytest.raises(ValueError, match="unknown arguments --m"):
            engine_options(wrong)
