"""AdamW with decay on matrices only, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vllm_dynin.training_ext.trainer.config import TrainConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight, beside the number of steps."""


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only.

    The released list of names without decay matches no parameter, so there norms decay too.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    others = [p for p in trained if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=all(p.is_cuda for p in trained),  # no temporaries of the size of all weights
    )


def trained_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What the optimiser moves, by name: all weights, or the adapters of a frozen model."""
    return ((name, w) for name, w in model.named_parameters() if w.requires_grad)


class MovingAverage:
    """Exponential moving average of a model's weights, sharded as they are.

    Args:
        model: the average starts as a copy of its weights.
        decay: weight of the old average in each update, between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {
            name: weight.detach().clone() for name, weight in trained_weights(model)
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the weights as they are now, in place."""
        for name, weight in trained_weights(model):
            self.weights[name].lerp_(weight.detach(), 1.0 - self.decay)
