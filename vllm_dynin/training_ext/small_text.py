"""What the recipes of small text models share: layout of a row, training from nothing, decoding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerFast

from vllm_dynin import checkpoint
from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.planning import PlanRequest, StandardOptions, make_plan
from vllm_dynin.processors.chat import render_chat
from vllm_dynin.processors.templates import build_sample
from vllm_dynin.processors.train_tokenizer import train_tokenizer
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.reference.driver import run_plan
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.training_ext import directions
from vllm_dynin.training_ext.collate import Batch, collate
from vllm_dynin.training_ext.directions import DirectionObjective
from vllm_dynin.training_ext.initialise import initialise
from vllm_dynin.training_ext.lookups import start_as_lookups
from vllm_dynin.training_ext.trainer import FunctionFeed, StepReport, TrainConfig, train


class Asked(Protocol):
    """A question with its answer, as far as laying it out needs."""

    @property
    def messages(self) -> tuple[Mapping[str, str], ...]:
        """Role and content of each turn, the last one the user's."""

    @property
    def answer(self) -> str:
        """What the assistant is to say."""


@dataclass(frozen=True, kw_only=True)
class SmallText:
    """What decides the size of a small text model, and how it is trained.

    Args:
        train: the optimisation.
        num_pieces: of the tokenizer.
        d_model: hidden size; four heads.
        num_layers: blocks.
        mlp_hidden_size: of each block.
        rope_theta: small, because at 10,000 and more most frequencies of a 32-wide head hardly
            turn within a prompt of forty tokens.
        neighbours: see `lookups.start_as_lookups`; none leaves all heads as they were drawn.
        matches: likewise.
    """

    train: TrainConfig
    num_pieces: int = 512
    d_model: int = 128
    num_layers: int = 4
    mlp_hidden_size: int = 320
    rope_theta: float = 50.0
    neighbours: tuple[int, ...] = ()
    matches: tuple[tuple[int, int], ...] = ()


BatchAt = Callable[[LLaDAConfig, PreTrainedTokenizerFast, int], Batch]
"""The batch of a step, counted from 0; equal steps must give equal batches."""


def objectives() -> dict[Task, DirectionObjective]:
    """The mean cross-entropy: for a model this small far less noisy than a bound with 1 / p.

    A mean has no bias to lose, so every row hides at least one token and teaches something.
    """
    default = directions.objectives()[Task.TEXT_TO_TEXT]
    return {Task.TEXT_TO_TEXT: replace(default, normalisation="mean", is_one_forced=True)}


def encode_prompt(asked: Asked, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of the conversation up to the answer, exactly as a server builds them."""
    return tokenizer.encode(render_chat(asked.messages), add_special_tokens=False)


def rows_of(
    asked: Sequence[Asked], config: LLaDAConfig, tokenizer: PreTrainedTokenizerFast, filler: int
) -> Batch:
    """Rows of one length: each answer region is filled up with EOS.

    Args:
        asked: a row each.
        config: of the model.
        tokenizer: of the model.
        filler: EOS behind the EOS that ends the longest row.
    """
    pairs = [
        (encode_prompt(one, tokenizer), tokenizer.encode(one.answer, add_special_tokens=False))
        for one in asked
    ]
    length = max(len(head) + len(answer) for head, answer in pairs) + 1 + filler
    return collate(
        [
            build_sample(
                head,
                answer,
                vocabulary=config.vocabulary,
                num_rows=config.vocab_size,
                num_targets=length - len(head),
            )
            for head, answer in pairs
        ]
    )


def train_from_nothing(
    recipe: SmallText,
    texts: Iterable[str],
    batch_at: BatchAt,
    on_step: Callable[[StepReport], None],
) -> tuple[LLaDA, PreTrainedTokenizerFast, float]:
    """Train tokenizer and model, on one thread.

    Args:
        recipe: sizes and optimisation.
        texts: what the tokenizer's pieces are learnt from.
        batch_at: the batch of a step.
        on_step: called with the report of every step.

    Returns:
        The model, its tokenizer, and the processor time in seconds.
    """
    torch.set_num_threads(1)  # more are slower at this size, and one makes runs repeat
    started = time.process_time()
    tokenizer = train_tokenizer(texts, recipe.num_pieces)
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
    if recipe.neighbours:
        start_as_lookups(model, recipe.train.seed, recipe.neighbours, recipe.matches)
    feed = FunctionFeed(lambda step: batch_at(config, tokenizer, step))
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


def as_request(
    asked: Asked,
    tokenizer: PreTrainedTokenizerFast,
    max_tokens: int,
    options: DenoiseParams | None = None,
) -> PlanRequest:
    """The question as a greedy request."""
    return PlanRequest(
        prompt_ids=tuple(encode_prompt(asked, tokenizer)),
        standard=StandardOptions(max_tokens=max_tokens),
        options=options or DenoiseParams(),
    )


def answer(
    model: LLaDA,
    tokenizer: PreTrainedTokenizerFast,
    asked: Asked,
    *,
    max_tokens: int,
    options: DenoiseParams | None = None,
) -> str:
    """Decode one answer greedily with the reference driver; the text up to the first EOS.

    As in serving, decoding ends with the first block that is done and holds EOS.
    """
    eos = model.config.vocabulary.eos
    request = as_request(asked, tokenizer, max_tokens, options)
    for decoder in run_plan(model, make_plan(request, model.config)):
        ids = decoder.ids[: decoder.num_committed].tolist()
        if eos in ids:
            return str(tokenizer.decode(ids[: ids.index(eos)], skip_special_tokens=True))
    return str(tokenizer.decode(ids, skip_special_tokens=True))
