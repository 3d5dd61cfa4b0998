"""Denoising steps against quality, in every direction of one checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from vllm_dynin.api import checkpoint_of
from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig, MMadaConfig
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.training_ext.evaluate.ablations.sweep import Point
from vllm_dynin.training_ext.evaluate.bench import Bench
from vllm_dynin.training_ext.evaluate.measure import directions_of, evaluate
from vllm_dynin.training_ext.evaluate.questions import Settings
from vllm_dynin.training_ext.tiny.decoding import DECODING

if TYPE_CHECKING:
    from vllm import LLM

TOKENS_PER_STEP = (1, 2, 4, 8, 16)
SERIES = "tokens per step"


def num_tokens(task: Task, config: LLaDAConfig) -> int:
    """Tokens that are generated for one answer.

    Args:
        task: a measured direction.
        config: of the checkpoint; it has the sizes of images.
    """
    length = DECODING[task].max_tokens
    if length is not None:
        return length
    assert isinstance(config, MMadaConfig)
    is_edit = task is Task.IMAGE_TO_IMAGE
    side = config.edit_resolution if is_edit else config.generation_resolution
    return int((side // config.image_patch) ** 2)


def sweep_steps(
    llm: LLM,
    *,
    settings: Settings,
    limit: int,
    seeds: Sequence[int],
    tokens_per_step: Sequence[int] = TOKENS_PER_STEP,
    directions: Sequence[Task] | None = None,
) -> list[Point]:
    """Measure a checkpoint with fewer and fewer steps.

    Every direction gets its number of tokens over `tokens_per_step` as its steps, so that one
    number means the same effort in all of them.

    Args:
        llm: the engine.
        settings: of decoding; the steps are replaced.
        limit: questions of each direction and seed.
        seeds: of the questions.
        tokens_per_step: what is tried; x of the points.
        directions: None is all that the checkpoint has.
    """
    checkpoint = checkpoint_of(llm)
    bench, points = Bench(checkpoint), []
    tasks = directions_of(checkpoint.config) if directions is None else directions
    for tokens in tokens_per_step:
        steps = {
            task: msgspec.structs.replace(
                settings.options.get(task, DenoiseParams()),
                steps=max(1, -(-num_tokens(task, checkpoint.config) // tokens)),
            )
            for task in tasks
        }
        found = evaluate(
            llm,
            directions=tasks,
            limit=limit,
            seeds=seeds,
            settings=replace(settings, options=steps),
            bench=bench,
        )
        points.append(Point(series=SERIES, x=tokens, evaluation=found))
    return points
