"""The masked-diffusion objective: how targets are hidden, and what predicting them costs.

Pure functions over tensors. A direction (text to text, image to text, …) picks a masking process,
the columns of its softmax and a normalisation; the trainer adds nothing of its own. Which
positions are targets and which carry a label is decided by `processors.templates.build_sample`.

A loss is written as `sum(weight · cross_entropy)` with a weight per position: one head call
(`head_loss`) on the labelled masked positions of a mixed batch then serves every direction, and no
logits are computed anywhere else.

Shape suffixes: B rows, T positions, N chosen positions, C columns of the softmax.

Source: GUIDELINES.md of ML-GSAI/LLaDA; `forward_process` of AIDASLab/Dynin-Omni@d6e3ca8 and of
Gen-Verse/MMaDA@3cdb870; arXiv 2604.00007 §3.2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vllm_dynin.processors.templates import IGNORE
from vllm_dynin.sampling.noise import mix_key
from vllm_dynin.sampling.schedules import mask_ratio

MIN_PROBABILITY = 1e-3
"""Smallest masking probability, so that 1 / p stays finite."""

Normalisation = Literal["llada_sft", "release", "mmada_pretrain", "mean"]
"""How the losses of positions add up, see `position_weights`."""

AnswerLength = Literal["region", "supervised"]
"""What an answer's length counts: all its targets, or those that carry a label."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The random numbers of one batch, from which any masking process is computed.

    Args:
        level_B: float32 in [0, 1), how much of each row is hidden (t).
        uniform_BT: float32 in [0, 1), one draw a position.
    """

    level_B: Tensor
    uniform_BT: Tensor


@dataclass(frozen=True, kw_only=True)
class Masked:
    """A batch with some of its targets hidden.

    Args:
        ids_BT: int64, the mask id where hidden.
        is_masked_BT: bool.
        probability_B: float32 in (0, 1], the probability with which a target was hidden.
    """

    ids_BT: Tensor
    is_masked_BT: Tensor
    probability_B: Tensor


def draw_noise(
    shape: tuple[int, int],
    *key: int,
    rows: Sequence[int] | None = None,
    is_stratified: bool = False,
    num_stratified: int | None = None,
) -> Noise:
    """Draw the noise of one batch; each row has its own generator.

    A row's draws depend on the key and its number alone, not on its neighbours, its place in the
    batch or the padding behind it.

    Args:
        shape: (B, T).
        key: e.g. seed and step.
        rows: number of each row. With numbers that count over all ranks and accumulated batches
            of a step, the noise does not depend on how its rows are shared out. None counts the
            rows of this batch.
        is_stratified: spread the levels evenly over [0, 1) from one common offset, the level of
            row 0. Each level is still uniform; the loss of a batch varies less.
        num_stratified: rows the levels are spread over; None is B. Give the rows of the whole
            step where `rows` counts over it.
    """
    num_rows, length = shape
    numbers = range(num_rows) if rows is None else rows
    draws = torch.empty(num_rows, length + 1)
    for place, number in enumerate(numbers):
        draws[place].uniform_(generator=_row_generator(*key, number))
    level_B = draws[:, 0]
    if is_stratified:
        offset = torch.empty(1).uniform_(generator=_row_generator(*key, 0))
        level_B = (offset + torch.tensor(list(numbers)) / (num_stratified or num_rows)) % 1.0
    return Noise(level_B=level_B, uniform_BT=draws[:, 1:])


def _row_generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix_key(*key))


def mask_targets(
    ids_BT: Tensor,
    is_target_BT: Tensor,
    noise: Noise,
    mask_id: int,
    *,
    is_one_forced: bool = False,
    is_forced_anywhere: bool = False,
) -> Masked:
    """Hide each target independently with its row's probability p = 0.999 t + 0.001.

    The process of text and speech. A mask id that stands in the clean ids is an ordinary id here;
    the released code would count it as hidden.

    Args:
        ids_BT: int64 clean ids, not modified.
        is_target_BT: bool, positions that may be hidden.
        noise: a target is hidden where its draw is below p.
        mask_id: id to write.
        is_one_forced: in a row where the draws hid nothing, hide one target, each equally likely.
        is_forced_anywhere: PARITY: look at all positions, condition included, where a position is
            forced and undone again (text of the released stages 2 and 3).
    """
    probability_B = (1.0 - MIN_PROBABILITY) * noise.level_B + MIN_PROBABILITY
    is_eligible_BT = torch.ones_like(is_target_BT) if is_forced_anywhere else is_target_BT
    is_masked_BT = (noise.uniform_BT < probability_B[:, None]) & is_eligible_BT
    if is_one_forced:
        # Draws are independent, so the lowest one among the targets is anywhere equally likely.
        lowest_B = noise.uniform_BT.masked_fill(~is_eligible_BT, torch.inf).argmin(-1)
        is_forced_B = ~is_masked_BT.any(-1) & is_eligible_BT.any(-1)
        is_masked_BT[is_forced_B, lowest_B[is_forced_B]] = True
    is_masked_BT = is_masked_BT & is_target_BT
    return Masked(
        ids_BT=ids_BT.masked_fill(is_masked_BT, mask_id),
        is_masked_BT=is_masked_BT,
        probability_B=probability_B,
    )


def mask_by_schedule(
    ids_BT: Tensor,
    is_target_BT: Tensor,
    noise: Noise,
    mask_id: int,
    *,
    schedule: str = "cosine",
    min_ratio: float = 0.0,
) -> Masked:
    """Hide exactly k = max(1, round(N · ratio)) of a row's N targets, each choice equally likely.

    The process of images: what the decoder sees at one of its steps. The ratio is the decoder's
    own schedule at the row's level; halves round to even. Which targets: those with the k lowest
    draws.

    Args:
        ids_BT: int64 clean ids, not modified.
        is_target_BT: bool, positions that may be hidden.
        noise: level and draws.
        mask_id: id to write.
        schedule: of `sampling.schedules.mask_ratio`.
        min_ratio: floor of the ratio (`min_masking_rate` of the released code, 0 in its configs).

    Returns:
        `probability_B` is k / N.

    Source: `mask_or_random_replace_tokens` of Dynin-Omni, `training/utils.py`. Its options for
    contiguous regions and random ids are off in every released configuration and left out here.
    """
    num_targets_B = is_target_BT.sum(-1)
    ratio_B = mask_ratio(schedule, noise.level_B).clamp(min=min_ratio)
    num_masked_B = (num_targets_B * ratio_B).round().long().clamp(min=1)
    num_masked_B = torch.minimum(num_masked_B, num_targets_B)
    draws_BT = noise.uniform_BT.masked_fill(~is_target_BT, torch.inf)
    ranks_BT = draws_BT.argsort(dim=-1, stable=True).argsort(dim=-1)
    is_masked_BT = (ranks_BT < num_masked_B[:, None]) & is_target_BT
    return Masked(
        ids_BT=ids_BT.masked_fill(is_masked_BT, mask_id),
        is_masked_BT=is_masked_BT,
        probability_B=num_masked_B / num_targets_B.clamp(min=1),
    )


def answer_lengths(
    is_target_BT: Tensor, labels_BT: Tensor, mode: AnswerLength = "region"
) -> Tensor:
    """Length of each row's answer, int64 [B], at least 1.

    Args:
        is_target_BT: bool.
        labels_BT: int64, `IGNORE` where there is no label.
        mode: `region` counts every target, unlabelled filler included, as the released code does.
    """
    counted = is_target_BT if mode == "region" else labels_BT != IGNORE
    return counted.sum(-1).clamp(min=1)


def position_weights(
    form: Normalisation,
    masked: Masked,
    labels_BT: Tensor,
    answer_length_B: Tensor,
    *,
    is_per_row: bool = False,
) -> Tensor:
    """Weight of each position's cross-entropy, float32 [B, T]; 0 where there is no loss.

    `position_shares` over `denominator`: the loss of a batch on its own. With p the row's masking
    probability, B the rows and T the row length:

    - `llada_sft` (default): 1 / (p · answer length · B), LLaDA's fine-tuning and the released I2T,
      V2T, S2T and T2S losses: an unbiased estimate, every row counting alike.
    - `release`: 1 / (p · masked positions of the batch), Dynin-Omni's T2T. Dividing by the masked
      count already removes one p, so rows with a small p weigh far more.
    - `mmada_pretrain`: 1 / (p · B · T), MMaDA's raw text.
    - `mean`: 1 / (labelled masked positions of the batch), the released T2I and I2I losses. For
      text it bounds nothing, and its gradient is far less noisy than one with 1 / p.

    Args:
        form: one of these.
        masked: the batch after masking.
        labels_BT: int64. A masked position without a label costs nothing, and still counts in the
            denominators.
        answer_length_B: int64, from `answer_lengths`.
        is_per_row: every row is a batch of its own, and the loss the mean over rows: what the
            released loops do, whose batches have one row.
    """
    given = (form, masked, labels_BT)
    shares_BT = position_shares(*given, answer_length_B, is_per_row=is_per_row)
    return shares_BT / max(1, denominator(*given, is_per_row=is_per_row))


def position_shares(
    form: Normalisation,
    masked: Masked,
    labels_BT: Tensor,
    answer_length_B: Tensor,
    *,
    is_per_row: bool = False,
) -> Tensor:
    """What a position's weight is before the batch's denominator divides it, float32 [B, T].

    Arguments as for `position_weights`. A row's shares do not depend on its neighbours.
    """
    shares_BT = _shares(form, masked, labels_BT, answer_length_B)
    if not is_per_row:
        return shares_BT
    return shares_BT / _row_denominators(form, masked, labels_BT).clamp(min=1)[:, None]


def _shares(
    form: Normalisation, masked: Masked, labels_BT: Tensor, answer_length_B: Tensor
) -> Tensor:
    has_loss_BT = masked.is_masked_BT & (labels_BT != IGNORE)
    if form == "mean":
        return has_loss_BT.float()
    share_B = 1.0 / masked.probability_B
    if form == "llada_sft":
        share_B = share_B / answer_length_B
    return share_B[:, None] * has_loss_BT


def denominator(
    form: Normalisation, masked: Masked, labels_BT: Tensor, *, is_per_row: bool = False
) -> int:
    """The integer that divides a batch's weighted losses; those of several batches add up.

    Divided by the sum over all ranks and accumulated batches, the losses of the parts add up to
    the loss of one large batch. Arguments as for `position_weights`.
    """
    if is_per_row:
        return labels_BT.shape[0]
    return int(_row_denominators(form, masked, labels_BT).sum())


def _row_denominators(form: Normalisation, masked: Masked, labels_BT: Tensor) -> Tensor:
    """What divides a batch of each row alone, int64 [B]; a batch's is their sum."""
    if form == "llada_sft":
        return torch.ones_like(labels_BT[:, 0])
    if form == "release":
        return masked.is_masked_BT.sum(-1)
    if form == "mmada_pretrain":
        return torch.full_like(labels_BT[:, 0], labels_BT.shape[1])
    return (masked.is_masked_BT & (labels_BT != IGNORE)).sum(-1)


def class_labels(labels: Tensor, classes: Sequence[tuple[int, int]]) -> Tensor:
    """Index of each label among the columns of a restricted softmax, `IGNORE` if it has none.

    Args:
        labels: int64 ids of any shape.
        classes: half-open id ranges in the order of the columns, e.g. units, end of audio, EOS.
    """
    found = torch.full_like(labels, IGNORE)
    offset = 0
    for first, stop in classes:
        is_inside = (labels >= first) & (labels < stop)
        found = torch.where(is_inside, labels - first + offset, found)
        offset += stop - first
    return found
