"""The recipe: a complete configuration, the batches it trains on, and the run."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from vllm_dynin import checkpoint
from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.processors.chat import render_chat
from vllm_dynin.processors.templates import Sample, build_sample
from vllm_dynin.processors.train_tokenizer import train_tokenizer
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.training_ext import directions
from vllm_dynin.training_ext.collate import Batch, collate
from vllm_dynin.training_ext.directions import DirectionObjective
from vllm_dynin.training_ext.initialise import initialise
from vllm_dynin.training_ext.tiny_text.tasks import (
    OPERATIONS,
    Example,
    draw_setting,
    tokenizer_texts,
    training_example,
)
from vllm_dynin.training_ext.trainer import FunctionFeed, StepReport, TrainConfig, train


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
class TinyText:
    """Everything that decides the checkpoint; equal recipes give equal weights.

    Args:
        train: the optimisation.
        num_pieces: of the tokenizer.
        d_model: hidden size; four heads.
        num_layers: blocks.
        mlp_hidden_size: of each block.
        rope_theta: small, because at 10,000 and more most frequencies of a 32-wide head hardly
            turn within a prompt of forty tokens.
        batch_size: rows a step.
        max_filler: EOS behind the longest answer of a batch, drawn anew for each batch up to this
            number, so that the answer region has no fixed length.
        long_filler: the same for one batch in ten.
        phases: copying alone comes first: it teaches attention by position, which the others need.
    """

    train: TrainConfig
    num_pieces: int = 512
    d_model: int = 128
    num_layers: int = 4
    mlp_hidden_size: int = 320
    rope_theta: float = 50.0
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


def objectives() -> dict[Task, DirectionObjective]:
    """The mean cross-entropy: for a model this small far less noisy than a bound with 1 / p.

    A mean has no bias to lose, so every row hides at least one token and teaches something.
    """
    default = directions.objectives()[Task.TEXT_TO_TEXT]
    return {Task.TEXT_TO_TEXT: replace(default, normalisation="mean", is_one_forced=True)}


def encode_prompt(example: Example, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of the conversation up to the answer, exactly as a server builds them."""
    text = render_chat(example.messages)
    return tokenizer.encode(text, add_special_tokens=False)


def batch_at(
    recipe: TinyText, config: LLaDAConfig, tokenizer: PreTrainedTokenizerFast, step: int
) -> Batch:
    """The batch of a step: rows of one length, each answer region filled up with EOS."""
    rng = random.Random(f"{recipe.train.seed} {step}")
    phase = next(p for p in recipe.phases if step < p.until * recipe.train.num_steps)
    setting = draw_setting(rng)
    pairs = []
    for operation in rng.choices(OPERATIONS, weights=phase.weights, k=recipe.batch_size):
        example = training_example(rng, operation, setting)
        answer = tokenizer.encode(example.answer, add_special_tokens=False)
        pairs.append((encode_prompt(example, tokenizer), answer))
    filler = rng.randint(0, recipe.long_filler if rng.random() < 0.1 else recipe.max_filler)
    length = max(len(head) + len(answer) for head, answer in pairs) + 1 + filler
    return collate([_sample(head, answer, length, config) for head, answer in pairs])


def _sample(head: list[int], answer: list[int], length: int, config: LLaDAConfig) -> Sample:
    return build_sample(
        head,
        answer,
        vocabulary=config.vocabulary,
        num_rows=config.vocab_size,
        num_targets=length - len(head),
    )


def run(
    recipe: TinyText, on_step: Callable[[StepReport], None] = lambda report: None
) -> tuple[LLaDA, PreTrainedTokenizerFast, float]:
    """Train from nothing, on one thread.

    Returns:
        The model, its tokenizer, and the processor time in seconds.
    """
    torch.set_num_threads(1)  # more are slower at this size, and one makes runs repeat
    started = time.process_time()
    tokenizer = train_tokenizer(tokenizer_texts(), recipe.num_pieces)
    config = LLaDAConfig(
        d_model=recipe.d_model,
        n_heads=4,
        n_layers=recipe.num_layers,
        mlp_hidden_size=recipe.mlp_hidden_size,
        rope_theta=recipe.rope_theta,
        max_sequence_length=512,
        text_vocab_size=len(tokenizer),
    )
    model = LLaDA(config)
    initialise(model, recipe.train.seed)
    feed = FunctionFeed(lambda step: batch_at(recipe, config, tokenizer, step))
    for report in train(model, feed, objectives(), recipe.train):
        on_step(report)
    return model, tokenizer, time.process_time() - started


def save(folder: Path, model: LLaDA, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the checkpoint with its tokenizer; the weights are stored in bfloat16.

    Raises:
        ValueError: the folder exists.
    """
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    checkpoint.save_checkpoint(folder, model.config, tensors, tokenizer)
