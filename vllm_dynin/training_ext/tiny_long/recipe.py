"""The recipe of `tiny-long`: a complete configuration, its batches, and the run."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from vllm_dynin.config import LLaDAConfig
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.training_ext.collate import Batch
from vllm_dynin.training_ext.small_text import SmallText, rows_of, train_from_nothing
from vllm_dynin.training_ext.tiny_long.tasks import (
    MAX_ANSWER,
    MIN_ANSWER,
    TASKS,
    question,
    tokenizer_texts,
)
from vllm_dynin.training_ext.trainer import StepReport, TrainConfig


@dataclass(frozen=True, kw_only=True)
class TinyLong(SmallText):
    """Everything that decides the checkpoint; equal recipes give equal weights.

    Args:
        rows_per_task: rows a step, in the order of `TASKS`.
        short: bounds of the answers' lengths at first: attention is learnt on short ones, cheaply.
        long: bounds in the end; songs are recited in batches that are long enough.
        short_until: share of the run up to which answers are short.
        grown_at: share from which on they are long; the bounds rise evenly in between.
        max_filler: EOS behind the longest answer of a batch, drawn anew for each batch up to this
            number, so that the answer region has no fixed length.
        long_filler: the same for one batch in ten.
    """

    num_pieces: int = 540
    rope_theta: float = 1000.0
    neighbours: tuple[int, ...] = (-1, -2, -3, 1)
    matches: tuple[tuple[int, int], ...] = ((-1, -1), (-2, -2), (-2, -1))
    rows_per_task: tuple[int, ...] = (5, 4, 5, 4, 3)
    short: tuple[int, int] = (6, 18)
    long: tuple[int, int] = (16, MAX_ANSWER)
    short_until: float = 0.3
    grown_at: float = 0.45
    max_filler: int = 8
    long_filler: int = 48


def tiny_long(*, seed: int = 0, num_steps: int = 2800) -> TinyLong:
    """The recipe."""
    return TinyLong(
        train=TrainConfig(
            num_steps=num_steps,
            seed=seed,
            learning_rate=2e-3,
            num_warmup_steps=50,
            weight_decay=0.01,
            betas=(0.9, 0.98),
            is_stratified=True,
            precision="bf16",  # with packing (attention in float32) 1.6 times as fast as float32
            is_packed=True,
        )
    )


def batch_at(
    recipe: TinyLong, config: LLaDAConfig, tokenizer: PreTrainedTokenizerFast, step: int
) -> Batch:
    """The batch of a step: questions whose answers are of like length."""
    rng = random.Random(f"{recipe.train.seed} {step}")
    low, high = _lengths(recipe, step / recipe.train.num_steps)
    num_tokens = round(rng.uniform(low, high))
    tasks = [
        task
        for task, num_rows in zip(TASKS, recipe.rows_per_task, strict=True)
        for _ in range(num_rows)
        if task != "recite" or num_tokens >= MIN_ANSWER
    ]
    asked = [question(rng, task, num_tokens, is_for_training=True) for task in tasks]
    filler = rng.randint(0, recipe.long_filler if rng.random() < 0.1 else recipe.max_filler)
    return rows_of(asked, config, tokenizer, filler)


def _lengths(recipe: TinyLong, share: float) -> tuple[float, float]:
    """Lengths of answers that are drawn at a share of the run."""
    grown = min(
        1.0, max(0.0, (share - recipe.short_until) / (recipe.grown_at - recipe.short_until))
    )
    (low, high), (long_low, long_high) = recipe.short, recipe.long
    return low + grown * (long_low - low), high + grown * (long_high - high)


def run(
    recipe: TinyLong, on_step: Callable[[StepReport], None] = lambda report: None
) -> tuple[LLaDA, PreTrainedTokenizerFast, float]:
    """Train from nothing, on one thread.

    Returns:
        The model, its tokenizer, and the processor time in seconds.
    """
    return train_from_nothing(
        recipe,
        tokenizer_texts(),
        lambda config, tokenizer, step: batch_at(recipe, config, tokenizer, step),
        on_step,
    )
