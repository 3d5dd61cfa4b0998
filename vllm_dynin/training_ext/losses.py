"""The losses of a step over several directions: each at its own length, with its own classes.

In two parts, so that the loss of a step does not depend on how its rows are shared out over ranks
and accumulated batches:

    noised = noise_batches(batches, objectives, config, seed, step, rows=numbers)  # no model
    totals = sum of denominators(noised) over ranks and accumulated batches        # integers
    losses = losses_of(model, noised, objectives, totals)                          # add up

`mixed_loss` is both for one batch on its own.

Shape suffixes: B rows, T positions, N positions with a loss (row-major), C columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.processors.templates import IGNORE
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.training_ext.attention import seen
from vllm_dynin.training_ext.collate import Batch
from vllm_dynin.training_ext.directions import DirectionObjective, IdRanges
from vllm_dynin.training_ext.head_loss import MAX_LOGITS, HeadRows, head_losses
from vllm_dynin.training_ext.objective import (
    Masked,
    Noise,
    answer_lengths,
    class_labels,
    denominator,
    draw_noise,
    mask_by_schedule,
    mask_targets,
    position_shares,
)


@dataclass(frozen=True, kw_only=True)
class Noised:
    """One direction's batch after masking: what the model is shown, and what it is asked.

    Args:
        ids_BT: int64, the mask id where hidden.
        positions_BT: int64, or None for 0, 1, … in every row.
        is_visible_BT: bool keys that may be attended to, or None for all.
        bias_BTT: float32 added to the attention scores instead, for the released code only.
        has_loss_BT: bool, the N positions whose logits are wanted.
        labels_N: int64 column of each, `IGNORE` for none.
        weights_N: float32 weight of each before division by the denominator.
        probability_B: float32, with which each row's targets were hidden.
        is_end_N: bool, positions whose label is EOS: a text's ending, and what fills its region.
        columns: ids of the softmax's classes.
        denominator: of this batch alone, see `objective.denominator`.
    """

    ids_BT: Tensor
    positions_BT: Tensor | None
    is_visible_BT: Tensor | None
    has_loss_BT: Tensor
    labels_N: Tensor
    weights_N: Tensor
    probability_B: Tensor
    is_end_N: Tensor
    columns: IdRanges
    denominator: int
    bias_BTT: Tensor | None = None

    def to(self, device: torch.device) -> Noised:
        """The same on another device."""
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    @property
    def probability_N(self) -> Tensor:
        """float32: the probability of the row of each position with a loss."""
        return self.probability_B[:, None].expand_as(self.has_loss_BT)[self.has_loss_BT]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What a step's batches cost.

    Args:
        total: scalar with a gradient: sum of coefficient × weight × loss.
        per_task: loss of each direction, scalars without a gradient and without coefficient.
        nll: plain cross-entropy of each position with a loss, float32 [N], for logs.
        num_supervised: how many positions that were.
    """

    total: Tensor
    per_task: dict[Task, Tensor]
    nll: dict[Task, Tensor]
    num_supervised: dict[Task, int]


def noise_batch(
    batch: Batch, objective: DirectionObjective, noise: Noise, config: LLaDAConfig
) -> Noised:
    """Mask one direction's batch and weigh its positions. Pure; on the batch's device.

    Args:
        batch: clean rows.
        objective: of the direction.
        noise: of the batch's shape.
        config: of the model; its `vocab_size` is the row count of the table.
    """
    masked = _mask(batch, objective, noise, config.vocabulary.mask)
    visible_BT, bias_BTT = seen(batch, masked, objective.attention, config.vocabulary)
    columns = objective.columns(config.vocabulary, config.vocab_size)
    labels_BT = class_labels(batch.labels_BT, columns)
    lengths_B = answer_lengths(batch.is_target_BT, labels_BT, objective.answer_length)
    form = objective.normalisation
    is_per_row = objective.is_per_row
    weights_BT = position_shares(form, masked, labels_BT, lengths_B, is_per_row=is_per_row)
    has_loss_BT = masked.is_masked_BT & (labels_BT != IGNORE)
    return Noised(
        ids_BT=masked.ids_BT,
        positions_BT=batch.positions_BT,
        is_visible_BT=visible_BT,
        bias_BTT=bias_BTT,
        has_loss_BT=has_loss_BT,
        labels_N=labels_BT[has_loss_BT],
        weights_N=weights_BT[has_loss_BT],
        probability_B=masked.probability_B,
        is_end_N=batch.labels_BT[has_loss_BT] == config.vocabulary.eos,
        columns=columns,
        denominator=denominator(form, masked, labels_BT, is_per_row=is_per_row),
    )


def _mask(batch: Batch, objective: DirectionObjective, noise: Noise, mask_id: int) -> Masked:
    given = (batch.ids_BT, batch.is_target_BT, noise, mask_id)
    if objective.masking == "schedule":
        return mask_by_schedule(*given, schedule=objective.schedule, min_ratio=objective.min_ratio)
    return mask_targets(
        *given,
        is_one_forced=objective.is_one_forced,
        is_forced_anywhere=objective.is_forced_anywhere,
    )


def noise_batches(
    batches: Mapping[Task, Batch],
    objectives: Mapping[Task, DirectionObjective],
    config: LLaDAConfig,
    *key: int,
    rows: Mapping[Task, Sequence[int]] | None = None,
    is_stratified: bool = False,
    num_stratified: Mapping[Task, int] | None = None,
) -> dict[Task, Noised]:
    """Mask the batches of several directions; each direction has noise of its own.

    Args:
        batches: by direction.
        objectives: of at least these directions.
        config: of the model.
        key: e.g. seed and step.
        rows: number of each row of a direction, see `draw_noise`.
        is_stratified: see `draw_noise`.
        num_stratified: see `draw_noise`.

    Raises:
        ValueError: a direction has no objective.
    """
    noised = {}
    for task, batch in batches.items():
        noise = draw_noise(
            batch.shape,
            *key,
            int.from_bytes(task.value.encode()),
            rows=None if rows is None else rows[task],
            is_stratified=is_stratified,
            num_stratified=None if num_stratified is None else num_stratified[task],
        )
        noised[task] = noise_batch(batch, _objective(objectives, task), noise, config)
    return noised


def _objective(objectives: Mapping[Task, DirectionObjective], task: Task) -> DirectionObjective:
    if task not in objectives:
        raise ValueError(
            f"a batch of {task.value}, but there are objectives for "
            f"{', '.join(known.value for known in objectives)} only; leave the direction out of "
            "the mixture"
        )
    return objectives[task]


def denominators(noised: Mapping[Task, Noised]) -> dict[Task, int]:
    """What divides each direction's loss, from these batches alone."""
    return {task: part.denominator for task, part in noised.items()}


def add_totals(parts: Iterable[Mapping[Task, int]]) -> dict[Task, int]:
    """Sum of `denominators` over accumulated batches."""
    totals: dict[Task, int] = {}
    for part in parts:
        for task, value in part.items():
            totals[task] = totals.get(task, 0) + value
    return totals


def weighted_sum(losses_N: Tensor, noised: Noised, objective: DirectionObjective) -> Tensor:
    """Scalar: the positions' losses by their weights, not yet divided; with the guard if any."""
    summed = (losses_N * noised.weights_N).sum()
    limit = objective.zero_above
    if limit is None:
        return summed
    value = summed.detach() / max(1, noised.denominator)
    is_fine = bool(torch.isfinite(value)) and 0 <= float(value) <= limit
    return summed if is_fine else torch.zeros_like(summed)


def losses_of(
    model: LLaDA,
    noised: Mapping[Task, Noised],
    objectives: Mapping[Task, DirectionObjective],
    totals: Mapping[Task, int] | None = None,
    *,
    hidden: Mapping[Task, Tensor] | None = None,
    weights: Mapping[Task, float] | None = None,
    max_logits: int = MAX_LOGITS,
) -> Losses:
    """Run the model on each direction's batch; the head sees the N positions and C columns only.

    Every batch runs the model and takes part in the gradient, also one without a loss: ranks that
    shard the model must make the same calls.

    Args:
        model: on its device.
        noised: by direction, on any device.
        objectives: of at least these directions.
        totals: denominators over the whole step; None takes each batch's own. Losses of the
            parts then add up over ranks and accumulated batches (where gradients are averaged
            over ranks, multiply by their number).
        hidden: final hidden states [N, D] of each direction where they were computed together
            (packed rows); None runs each direction's batch.
        weights: of each direction, beside its coefficient; None is 1.
        max_logits: alive at once, see `head_loss`.

    Raises:
        ValueError: there is no batch.
    """
    if not noised:
        raise ValueError("no batch of any direction; give at least one")
    device = model.head_weight.device
    totals = denominators(noised) if totals is None else totals
    parts = {task: given.to(device) for task, given in noised.items()}
    rows = [
        HeadRows(
            hidden_ND=_hidden(model, part) if hidden is None else hidden[task],
            labels_N=part.labels_N,
            columns=part.columns,
            is_float32=_objective(objectives, task).is_float32,
        )
        for task, part in parts.items()
    ]
    terms: list[Tensor] = []
    per_task: dict[Task, Tensor] = {}
    nll: dict[Task, Tensor] = {}
    found = head_losses(model.head_weight, rows, max_logits)
    for (task, part), losses_N in zip(parts.items(), found, strict=True):
        objective = _objective(objectives, task)
        loss = weighted_sum(losses_N, part, objective) / max(1, totals[task])
        weight = 1.0 if weights is None else weights[task]
        terms.append(objective.coefficient * weight * loss)
        per_task[task], nll[task] = loss.detach(), losses_N.detach()
    return Losses(
        total=torch.stack(terms).sum(),
        per_task=per_task,
        nll=nll,
        num_supervised={task: len(part.labels_N) for task, part in noised.items()},
    )


def _hidden(model: LLaDA, part: Noised) -> Tensor:
    """Final hidden states [N, D] of a direction's positions with a loss."""
    attend = part.is_visible_BT if part.bias_BTT is None else part.bias_BTT
    return model.hidden(part.ids_BT, part.positions_BT, attend)[part.has_loss_BT]


def mixed_loss(
    model: LLaDA,
    batches: Mapping[Task, Batch],
    objectives: Mapping[Task, DirectionObjective],
    *noise_key: int,
    totals: Mapping[Task, int] | None = None,
    rows: Mapping[Task, Sequence[int]] | None = None,
    is_stratified: bool = False,
) -> Losses:
    """Mask the batches and compute their losses: `noise_batches`, then `losses_of`.

    Args:
        model: on its device.
        batches: clean rows by direction, each direction at its own length.
        objectives: of at least these directions.
        noise_key: e.g. seed and step; equal keys give equal noise.
        totals: see `losses_of`.
        rows: see `noise_batches`.
        is_stratified: see `draw_noise`.

    Raises:
        ValueError: there is no batch, or one of a direction without an objective.
    """
    noised = noise_batches(
        batches,
        objectives,
        model.config,
        *noise_key,
        rows=rows,
        is_stratified=is_stratified,
    )
    return losses_of(model, noised, objectives, totals)
