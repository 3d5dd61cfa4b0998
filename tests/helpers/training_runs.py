"""A tiny omnimodal model and records of every direction, for tests of training."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from helpers.tiny_checkpoint import tiny_config
from helpers.tiny_tokenizer import make_tokenizer
from vllm_dynin.canvas import Task
from vllm_dynin.config import DyninOmniConfig, LLaDAConfig
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.training_ext.directions import objectives
from vllm_dynin.training_ext.initialise import initialise
from vllm_dynin.training_ext.records import Record, SampleContext, sample_policies
from vllm_dynin.training_ext.trainer import MemoryMixture, RecordFeed, TrainConfig, Trainer
from vllm_dynin.training_ext.trainer.parallel import Parallel

DIRECTIONS = (
    Task.TEXT_TO_TEXT,
    Task.IMAGE_TO_TEXT,
    Task.VIDEO_TO_TEXT,
    Task.SPEECH_TO_TEXT,
    Task.TEXT_TO_SPEECH,
    Task.TEXT_TO_IMAGE,
    Task.IMAGE_TO_IMAGE,
)


CLOCKS = {"seconds", "data_seconds", "positions_per_second", "peak_gib"}
"""What a report says of the machine and not of the run."""


def plain(scalars):
    """A report without them."""
    return {name: value for name, value in scalars.items() if name not in CLOCKS}


def small_config(layers: int = 2) -> LLaDAConfig:
    """An omnimodal model of a hundred thousand weights with short text blocks."""
    config = tiny_config(DyninOmniConfig, num_heads=1, layers=layers)
    config.image_text_block = config.speech_text_block = 28
    return config


def small_model(seed: int = 0, layers: int = 2) -> LLaDA:
    model = LLaDA(small_config(layers))
    initialise(model, seed)
    return model


def codes(rng: random.Random, count: int, limit: int) -> tuple[int, ...]:
    return tuple(rng.randrange(limit) for _ in range(count))


def record(task: Task, number: int) -> Record:
    """A record of a direction; lengths differ from one to the next."""
    rng = random.Random(f"{task} {number}")
    fields = {
        Task.TEXT_TO_TEXT: {"text": "red" * (1 + number % 3), "answer": f"blue {number}"},
        Task.IMAGE_TO_TEXT: {"images": (codes(rng, 4, 16),), "answer": f"cube {number}"},
        Task.VIDEO_TO_TEXT: {
            "images": tuple(codes(rng, 2, 16) for _ in range(1 + number % 2)),
            "answer": f"two {number}",
        },
        Task.SPEECH_TO_TEXT: {"units": codes(rng, 3 + number % 4, 12), "answer": "say"},
        Task.TEXT_TO_SPEECH: {"text": f"say {number}", "units": codes(rng, 3 + number % 4, 12)},
        Task.TEXT_TO_IMAGE: {"text": f"cube {number}", "target_image": codes(rng, 4, 16)},
        Task.IMAGE_TO_IMAGE: {
            "text": "turn",
            "images": (codes(rng, 4, 16),),
            "target_image": codes(rng, 4, 16),
        },
    }[task]
    return Record(task=task, source="made up", key=str(number), **fields)


def small_context(config: LLaDAConfig) -> SampleContext:
    """Short instructions, so that a row of speech takes 40 positions and not 100."""
    policies = {
        task: replace(policy, instructions=("say it",), max_filler=2)
        for task, policy in sample_policies(dropout=0.3).items()
    }
    return SampleContext(config=config, tokenizer=make_tokenizer(), policies=policies)


def small_trainer(
    config: TrainConfig,
    *,
    rows: int = 2,
    num_records: int = 7,
    tasks=DIRECTIONS,
    seed: int = 0,
    identity=None,
) -> Trainer:
    """A trainer of all directions, on as many processes as there are."""
    torch.set_num_threads(1)
    model = small_model(seed)
    parallel = Parallel(config)
    mixture = MemoryMixture(
        records={task: [record(task, number) for number in range(num_records)] for task in tasks},
        rows=dict.fromkeys(tasks, rows),
        seed=1,
        rank=parallel.rank,
        world_size=parallel.world_size,
    )
    feed = RecordFeed(mixture, small_context(model.config), config, parallel.place)
    return Trainer(model, feed, objectives(), config, parallel, identity)
