"""The training loop.

A run is a function of its configuration, its model and its feed: noise is computed from (seed,
step, direction, row), never from what was drawn before, so a run repeats bit for bit on the same
machine and thread count, and a resumed run equals one that was never cut off.

The loss of a step is divided by denominators counted over *all* its rows before the first forward
pass, so that cutting it into micro-batches, or sharing it out over processes, changes nothing but
the order of additions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vllm_dynin.canvas import Task
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.training_ext.directions import DirectionObjective
from vllm_dynin.training_ext.lora import add_adapters, initialise_adapters, is_adapter
from vllm_dynin.training_ext.losses import Losses, Noised, losses_of, noise_batches
from vllm_dynin.training_ext.trainer import checkpoints
from vllm_dynin.training_ext.trainer.config import TrainConfig
from vllm_dynin.training_ext.trainer.feed import Feed, MicroBatch
from vllm_dynin.training_ext.trainer.optimiser import MovingAverage
from vllm_dynin.training_ext.trainer.packing import packed_hidden
from vllm_dynin.training_ext.trainer.parallel import Parallel, checkpoint_activations
from vllm_dynin.training_ext.trainer.report import StepReport, Tally, peak_bytes

Objectives = Mapping[Task, DirectionObjective]


class TrainModule(nn.Module):
    """The model with its losses: what DDP, FSDP2 and DeepSpeed wrap.

    Their hooks run around `forward`, so the loss must come out of it; calling the model inside
    the wrapper would leave gradients unreduced.
    """

    def __init__(self, model: LLaDA, objectives: Objectives, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self._objectives = objectives
        self._is_packed, self._max_logits = config.is_packed, config.max_logits
        # FSDP2 and DeepSpeed cast by themselves.
        self._is_autocast = config.precision == "bf16" and config.sharding == "none"

    def forward(
        self,
        noised: Mapping[Task, Noised],
        totals: Mapping[Task, int],
        weights: Mapping[Task, float] | None,
    ) -> Losses:
        """Losses of one micro-batch over the denominators of the whole step."""
        device = self.model.head_weight.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._is_autocast):
            hidden = packed_hidden(self.model, noised) if self._is_packed else None
            return losses_of(
                self.model,
                noised,
                self._objectives,
                totals,
                hidden=hidden,
                weights=weights,
                max_logits=self._max_logits,
            )


class Trainer:
    """One run: `steps()` trains, `save` and `resume` keep it.

    Args:
        model: float32, trained in place. It may be on the meta device, so that no process ever
            holds all of a model that is sharded; `load_weights` or `resume` fills it then.
        feed: micro-batches of this rank.
        objectives: of at least the directions that come up.
        config: the run.
        parallel: its processes; None makes them.
        identity: what else decides what is trained, by name, as JSON values: a run is resumed with
            the same only.

    Raises:
        ValueError: the weights are not float32, or the launcher disagrees with `config`.
    """

    def __init__(
        self,
        model: LLaDA,
        feed: Feed,
        objectives: Objectives,
        config: TrainConfig,
        parallel: Parallel | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        _check_float32(model)
        if config.lora_rank is not None:
            add_adapters(
                model,
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                dropout=config.lora_dropout,
                targets=config.lora_targets,
                base_dtype=config.base_dtype,
            )
        if config.is_activation_checkpointed:
            checkpoint_activations(model)
        self.model, self.feed, self.config = model, feed, config
        self.parallel = parallel or Parallel(config)
        self.identity = identity or {}
        self.base: Path | None = None  # what frozen weights were loaded from
        if config.lora_rank is not None and self.parallel.is_deepspeed:
            raise ValueError("adapters are not trained under DeepSpeed; start without its file")
        self.step = 0
        self.is_updating = False  # weights are those of no step while it is
        self.is_stopping = False  # a signal sets it; the report of the step in progress says so
        self._feed_state: dict[str, Any] | None = None  # where an unfinished step began
        self.objectives = objectives
        module = TrainModule(model, objectives, config)
        self._module, self.optimizer = self.parallel.prepare(model, module)
        initialise_adapters(model, config.seed)
        self.average = self._new_average()

    def steps(self) -> Iterator[StepReport]:
        """Train up to `num_steps`, yielding a report after every optimiser step.

        Between two steps the run may be saved, and the model used.

        Raises:
            DataFailed: the data can give no more rows.
            FloatingPointError: the loss or the gradient is not finite.

            After either the run can be saved: weights and position are those before the step.
        """
        while self.step < self.config.num_steps:
            self.model.train()
            yield self._one_step()
        self.model.eval()

    def _one_step(self) -> StepReport:
        started = time.perf_counter()
        self._feed_state = self.feed.state_dict()
        # Step 0 of the schedule would leave the weights as they are.
        learning_rate = self.config.learning_rate_at(self.step + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        micro = self.feed.next_step()
        data_seconds = time.perf_counter() - started
        noised = self._noise(micro)
        totals = self.parallel.sum_tasks(noised)
        weights = row_weights(micro[0].num_rows) if self.config.weigh_by_rows else None
        tally = Tally(self.objectives, weights, is_packed=self.config.is_packed)
        for index, part in enumerate(noised):
            with self.parallel.micro_batch(is_last=index == len(noised) - 1):
                losses = self.forward(part, totals, weights)
                self.parallel.backward(losses.total)
            tally.add(part, losses)
        norm = self.parallel.clip(self.model)
        report = tally.report(
            self.parallel,
            step=self.step + 1,
            grad_norm=norm,
            learning_rate=learning_rate,
            is_stopped=self.is_stopping,
        )
        _check_finite(report, is_norm_known=not self.parallel.is_deepspeed)
        self.is_updating = True
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model)
        self.step += 1
        self._feed_state, self.is_updating = None, False
        return replace(
            report,
            seconds=time.perf_counter() - started,
            data_seconds=data_seconds,
            peak_bytes=peak_bytes(),
        )

    def _noise(self, micro: Sequence[MicroBatch]) -> list[dict[Task, Noised]]:
        if len(micro) != self.config.num_micro_batches:
            raise ValueError(
                f"the feed gave {len(micro)} micro-batches, num_micro_batches is "
                f"{self.config.num_micro_batches}; make both agree"
            )
        return [
            noise_batches(
                one.batches,
                self.objectives,
                self.model.config,
                self.config.seed,
                self.step,
                rows=one.rows,
                is_stratified=self.config.is_stratified,
                num_stratified=one.num_rows,
            )
            for one in micro
        ]

    def forward(
        self,
        noised: Mapping[Task, Noised],
        totals: Mapping[Task, int],
        weights: Mapping[Task, float] | None = None,
    ) -> Losses:
        """Losses of one micro-batch, through the wrapped module; see `TrainModule`."""
        losses: Losses = self._module(noised, totals, weights)
        return losses

    # --- keeping ----------------------------------------------------------------------------------

    def save(self, folder: Path, *, tokenizer: Any = None, keep: int = 2) -> Path:
        """Write a checkpoint of the run into `folder`; see `checkpoints.save`."""
        return checkpoints.save(
            folder,
            step=self.step,
            model=self.model,
            optimizer=self.optimizer,
            average=self._average,
            feed_state=self._feed_state or self.feed.state_dict(),
            config=self.config,
            parallel=self.parallel,
            identity=self.identity,
            base=self.base,
            tokenizer=tokenizer,
            keep=keep,
        )

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of the same run; see `checkpoints.load`."""
        self.step = checkpoints.load(
            path,
            model=self.model,
            optimizer=self.optimizer,
            average=self._average,
            load_feed=self.feed.load_state_dict,
            config=self.config,
            parallel=self.parallel,
            identity=self.identity,
        )

    def load_weights(self, path: Path) -> None:
        """Start from a checkpoint of the family, one tensor at a time, also into shards.

        Raises:
            ValueError: its tensors are not those of the model.
        """
        weights = self.model.named_parameters()
        base = {name: weight for name, weight in weights if not is_adapter(name)}
        checkpoints.load_weights(path, base)
        self.base = path
        self.average = self._new_average()

    def _new_average(self) -> MovingAverage | None:
        decay = self.config.ema_decay
        return None if decay is None else MovingAverage(self.model, decay)

    @property
    def _average(self) -> dict[str, Tensor] | None:
        return None if self.average is None else self.average.weights


def row_weights(num_rows: Mapping[Task, int]) -> dict[Task, float]:
    """What makes the sum of the directions' means the mean over all rows of a step."""
    total = sum(num_rows.values())
    return {task: count / total for task, count in num_rows.items()}


def train(
    model: LLaDA, feed: Feed, objectives: Objectives, config: TrainConfig
) -> Iterator[StepReport]:
    """Train in place, yielding a report after every optimiser step; see `Trainer`."""
    yield from Trainer(model, feed, objectives, config).steps()


def _check_float32(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.dtype != torch.float32:
            raise ValueError(
                f"{name} is {weight.dtype}; weights are trained in float32 (at small learning "
                "rates most updates would round to nothing), so load with dtype=torch.float32 "
                "and set precision=bf16 to compute in bfloat16"
            )


def _check_finite(report: StepReport, *, is_norm_known: bool) -> None:
    # DeepSpeed may tell no norm, and has made its step already.
    if math.isfinite(report.loss) and (math.isfinite(report.grad_norm) or not is_norm_known):
        return
    worst = [str(task) for task, part in report.tasks.items() if not math.isfinite(part.loss)]
    raise FloatingPointError(
        f"step {report.step} has loss {report.loss} and gradient norm {report.grad_norm} "
        f"({', '.join(worst) or 'no direction'} not finite); lower the learning rate "
        f"({report.learning_rate:g}) or look at the batch of this step"
    )
