"""The trainer: one loop over a plain module, on one process or many."""

from vllm_dynin.training_ext.trainer.config import TrainConfig, warmup_cosine
from vllm_dynin.training_ext.trainer.feed import (
    Feed,
    FunctionFeed,
    MemoryMixture,
    MicroBatch,
    Mixture,
    RecordFeed,
)
from vllm_dynin.training_ext.trainer.loop import Trainer, train
from vllm_dynin.training_ext.trainer.report import RunLog, StepReport, TaskReport

__all__ = [
    "Feed",
    "FunctionFeed",
    "MemoryMixture",
    "MicroBatch",
    "Mixture",
    "RecordFeed",
    "RunLog",
    "StepReport",
    "TaskReport",
    "TrainConfig",
    "Trainer",
    "train",
    "warmup_cosine",
]
