"""The recipe: a complete configuration, the batches it trains on, and the run."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast

from vllm_dynin.config import LLaDAConfig
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.training_ext.collate import Batch
from vllm_dynin.training_ext.small_text import SmallText, rows_of, train_from_nothing
from vllm_dynin.training_ext.tiny_text.tasks import (
    OPERATIONS,
    draw_setting,
    tokenizer_texts,
    training_example,
)
from vllm_dynin.training_ext.trainer import StepReport, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the run with its own mixture.

    Args:
        until: share of the run at which it ends.
        weights: of copy, reverse and sort.
    """

    until: float
    weights: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class TinyText(SmallText):
    """Everything that decides the checkpoint; equal recipes give equal weights.

    Args:
        batch_size: rows a step.
        max_filler: EOS behind the longest answer of a batch, drawn anew for each batch up to this
            number, so that the answer region has no fixed length.
        long_filler: the same for one batch in ten.
        phases: copying alone comes first: it teaches attention by position, which the others need.
    """

    batch_size: int = 24
    max_filler: int = 8
    long_filler: int = 48
    phases: tuple[Phase, ...] = field(
        default=(
            Phase(until=0.1, weights=(1, 0, 0)),
            Phase(until=0.4, weights=(1, 1.5, 3)),
            Phase(until=1.0, weights=(1, 1.3, 5)),
        )
    )


def tiny_text(*, seed: int = 0, num_steps: int = 2250) -> TinyText:
    """The recipe of the shipped checkpoint."""
    return TinyText(
        train=TrainConfig(
            num_steps=num_steps,
            seed=seed,
            learning_rate=2e-3,
            num_warmup_steps=50,
            weight_decay=0.01,
            betas=(0.9, 0.98),
            is_stratified=True,
        )
    )


def batch_at(
    recipe: TinyText, config: LLaDAConfig, tokenizer: PreTrainedTokenizerFast, step: int
) -> Batch:
    """The batch of a step: rows of one length, each answer region filled up with EOS."""
    rng = random.Random(f"{recipe.train.seed} {step}")
    phase = next(p for p in recipe.phases if step < p.until * recipe.train.num_steps)
    setting = draw_setting(rng)
    asked = [
        training_example(rng, operation, setting)
        for operation in rng.choices(OPERATIONS, weights=phase.weights, k=recipe.batch_size)
    ]
    filler = rng.randint(0, recipe.long_filler if rng.random() < 0.1 else recipe.max_filler)
    return rows_of(asked, config, tokenizer, filler)


def run(
    recipe: TinyText, on_step: Callable[[StepReport], None] = lambda report: None
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
