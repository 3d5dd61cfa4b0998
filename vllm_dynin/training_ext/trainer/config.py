"""What decides a training run, except its model and its data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from vllm_dynin.training_ext.head_loss import MAX_LOGITS
from vllm_dynin.training_ext.lora import TARGETS, check_targets

Precision = Literal["fp32", "bf16"]
"""What the forward and backward passes compute in. Weights and optimiser state stay float32."""

Sharding = Literal["none", "fsdp2"]
"""How several processes hold the model: each all of it (DDP), or a shard of each block."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained. Steps are optimiser steps.

    Args:
        num_steps: length of the run.
        seed: of noise and initial weights; data have their own.
        learning_rate: at its peak.
        min_learning_rate_ratio: floor of the cosine, as a share of the peak; 0 in the released
            code, which drops its own setting.
        num_warmup_steps: linear rise to the peak.
        weight_decay: on matrices; the norms' weights never decay.
        betas: of AdamW.
        eps: of AdamW.
        max_grad_norm: gradients of the whole step are scaled down to this norm.
        weigh_by_rows: the loss of a step is the mean over all its rows, so that a direction weighs
            as many rows as it has, times its coefficient. Else it is the sum of the directions'
            means: a direction's share of the rows makes its loss less noisy and not heavier, and
            with seven of them `max_grad_norm` binds up to seven times harder.
        num_micro_batches: forward and backward passes a step is cut into; the gradients are those
            of one pass over all of them.
        is_stratified: spread the masking levels of a direction's rows evenly, see
            `objective.draw_noise`.
        precision: of forward and backward.
        sharding: over several processes.
        is_activation_checkpointed: recompute each block's activations in the backward pass.
        is_packed: put the rows of all directions behind each other, without padding, in one pass
            with attention within each row; otherwise each direction is a pass of its own.
        max_logits: logits alive at once; the rows with a loss go through the head in chunks of so
            many, and are computed again in the backward pass.
        lora_rank: train adapters of this rank on the matrices of the blocks, and freeze the rest
            (in bfloat16 where the precision is); None trains all weights.
        lora_alpha: the adapters are scaled by alpha / rank.
        lora_dropout: of what goes into them.
        lora_targets: which matrices, see `lora.TARGETS`.
        ema_decay: keep a moving average of the weights with this decay a step; None keeps none.

    Raises:
        ValueError: a number is out of range.
    """

    num_steps: int
    seed: int = 0
    learning_rate: float = 2e-5
    min_learning_rate_ratio: float = 0.1
    num_warmup_steps: int = 1000
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    weigh_by_rows: bool = False
    num_micro_batches: int = 1
    is_stratified: bool = False
    precision: Precision = "fp32"
    sharding: Sharding = "none"
    is_activation_checkpointed: bool = False
    is_packed: bool = False
    max_logits: int = MAX_LOGITS
    lora_rank: int | None = None
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = TARGETS
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        rules = (
            ("num_steps", self.num_steps >= 1, "at least 1"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("num_warmup_steps", self.num_warmup_steps >= 0, "0 or more"),
            ("min_learning_rate_ratio", 0 <= self.min_learning_rate_ratio <= 1, "from 0 to 1"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("max_grad_norm", self.max_grad_norm > 0, "above 0"),
            ("num_micro_batches", self.num_micro_batches >= 1, "at least 1"),
            ("lora_rank", self.lora_rank is None or self.lora_rank >= 1, "at least 1, or None"),
            ("lora_alpha", self.lora_alpha > 0, "above 0"),
            ("lora_dropout", 0 <= self.lora_dropout < 1, "from 0 to 1"),
            ("max_logits", self.max_logits >= 1, "at least 1"),
            ("precision", self.precision in ("fp32", "bf16"), "fp32 or bf16"),
            ("sharding", self.sharding in ("none", "fsdp2"), "none or fsdp2"),
            ("ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "between 0 and 1"),
        )
        for name, is_met, rule in rules:
            if not is_met:
                raise ValueError(f"{name}={getattr(self, name)} must be {rule}")
        check_targets(self.lora_targets)
        if self.lora_rank is not None and self.ema_decay is not None:
            raise ValueError(
                f"lora_rank={self.lora_rank} and ema_decay={self.ema_decay}: adapters have no "
                "moving average; leave it out"
            )
        if self.lora_rank is not None and self.sharding != "none":
            raise ValueError(
                f"lora_rank={self.lora_rank} with sharding={self.sharding}: frozen weights and "
                "adapters have different dtypes, which shards cannot; use sharding=none (the 8B "
                "takes 16 GB frozen in bfloat16, and several processes share the rows)"
            )

    @property
    def base_dtype(self) -> torch.dtype | None:
        """Of frozen weights; None leaves it."""
        return torch.bfloat16 if self.precision == "bf16" else None

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of optimiser step `step`, counted from 0."""
        ratio = warmup_cosine(
            step, self.num_warmup_steps, self.num_steps, self.min_learning_rate_ratio
        )
        return self.learning_rate * ratio


def warmup_cosine(step: int, num_warmup_steps: int, num_steps: int, floor: float) -> float:
    """Share of the peak learning rate: linear from 0, cosine to `floor`, then flat.

    The original's formula turns upwards again behind the last step; this one does not.
    """
    if step < num_warmup_steps:
        return step / num_warmup_steps
    progress = min(1.0, (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
