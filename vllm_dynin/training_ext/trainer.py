"""One training loop over a plain `nn.Module`.

A run is a function of its configuration: batch and noise of a step are computed from (seed, step),
never from what was drawn before, so a run repeats bit for bit on the same machine and thread count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.training_ext.collate import Batch
from vllm_dynin.training_ext.objective import (
    Normalisation,
    answer_lengths,
    class_labels,
    cross_entropy,
    draw_noise,
    mask_targets,
    position_weights,
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained. Steps are optimizer steps.

    Args:
        num_steps: length of the run.
        seed: of batches, noise and initial weights.
        learning_rate: at its peak.
        min_learning_rate_ratio: floor of the cosine, as a share of the peak; 0 in the released
            code, which drops its own setting.
        num_warmup_steps: linear rise to the peak.
        weight_decay: on matrices; the norms' weights never decay.
        betas: of AdamW.
        max_grad_norm: gradients are scaled down to this norm.
        loss: normalisation, see `objective.position_weights`.
        is_stratified: see `objective.draw_noise`.

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
    max_grad_norm: float = 1.0
    loss: Normalisation = "llada_sft"
    is_stratified: bool = False

    def __post_init__(self) -> None:
        rules = (
            ("num_steps", self.num_steps >= 1, "at least 1"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("num_warmup_steps", self.num_warmup_steps >= 0, "0 or more"),
            ("min_learning_rate_ratio", 0 <= self.min_learning_rate_ratio <= 1, "from 0 to 1"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("max_grad_norm", self.max_grad_norm > 0, "above 0"),
        )
        for name, is_met, rule in rules:
            if not is_met:
                raise ValueError(f"{name}={getattr(self, name)} must be {rule}")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of optimizer step `step`, counted from 0."""
        ratio = warmup_cosine(
            step, self.num_warmup_steps, self.num_steps, self.min_learning_rate_ratio
        )
        return self.learning_rate * ratio


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did.

    Args:
        step: counted from 1.
        loss: of the step's batch, before the update.
        grad_norm: before clipping.
        learning_rate: that was used.
        num_supervised: positions the loss looked at.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    num_supervised: int


def warmup_cosine(step: int, num_warmup_steps: int, num_steps: int, floor: float) -> float:
    """Share of the peak learning rate: linear from 0, cosine to `floor`, then flat.

    The original's formula turns upwards again behind the last step; this one does not.
    """
    if step < num_warmup_steps:
        return step / num_warmup_steps
    progress = min(1.0, (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only.

    The released list of names without decay matches no parameter, so there norms decay too.
    """
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


def text_batch_loss(
    model: LLaDA, batch: Batch, config: TrainConfig, *noise_key: int
) -> tuple[Tensor, int]:
    """Loss of one text-to-text batch, and how many positions it looked at.

    Only the labelled masked positions go through the head, and only over the text ids.
    """
    vocabulary = model.config.vocabulary
    device = model.head_weight.device
    noise = draw_noise(batch.shape, *noise_key, is_stratified=config.is_stratified)
    masked = mask_targets(
        batch.ids_BT, batch.is_target_BT, noise, vocabulary.mask, is_one_forced=True
    )
    lengths = answer_lengths(batch.is_target_BT, batch.labels_BT)
    weights_BT = position_weights(config.loss, masked, batch.labels_BT, lengths)
    rows_BT = weights_BT > 0
    visible = batch.is_visible_BT
    logits_NC = model(
        masked.ids_BT.to(device),
        attend=None if visible is None else visible.to(device),
        rows=rows_BT.to(device),
        columns=vocabulary.text,
    )
    labels_N = class_labels(batch.labels_BT[rows_BT], [(0, vocabulary.text.stop)])
    losses_N = cross_entropy(logits_NC, labels_N.to(device))
    return (weights_BT[rows_BT].to(device) * losses_N).sum(), len(labels_N)


def train(
    model: LLaDA, batch_at: Callable[[int], Batch], config: TrainConfig
) -> Iterator[StepReport]:
    """Train in place, yielding a report after every optimizer step.

    Args:
        model: on its device, in the dtype it is trained in.
        batch_at: the batch of a step, counted from 0; equal steps must give equal batches.
        config: the run.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    model.train()
    optimizer = make_optimizer(model, config)
    for step in range(config.num_steps):
        # Step 0 of the schedule would leave the weights as they are.
        learning_rate = config.learning_rate_at(step + 1)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        loss, num_supervised = text_batch_loss(model, batch_at(step), config, config.seed, step)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss of step {step + 1} is {value}; lower the learning rate "
                f"({learning_rate:g}) or look at the batch of this step"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield StepReport(step + 1, value, float(norm), learning_rate, num_supervised)
    model.eval()
