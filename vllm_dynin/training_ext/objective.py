"""The masked-diffusion objective: how targets are hidden, and what predicting them costs.

Pure functions over tensors. A direction (text to text, image to text, …) picks a masking process,
the columns of its softmax and a normalisation; the trainer adds nothing of its own. Which
positions are targets and which carry a label is decided by `processors.templates.build_sample`.

A loss is written as `sum(weight · cross_entropy)` with a weight per position: one head call on the
labelled masked positions of a mixed batch then serves every direction, and no logits are computed
anywhere else.

Shape suffixes: B rows, T positions, N chosen positions, C columns of the softmax.

Source: GUIDELINES.md of ML-GSAI/LLaDA; `forward_process` of AIDASLab/Dynin-Omni@d6e3ca8 and of
Gen-Verse/MMaDA@3cdb870; arXiv 2604.00007 §3.2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm_dynin.processors.templates import IGNORE
from vllm_dynin.sampling.noise import mix_key

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
        probability_B: float32 in [1e-3, 1), the probability with which a target was hidden.
    """

    ids_BT: Tensor
    is_masked_BT: Tensor
    probability_B: Tensor


def draw_noise(shape: tuple[int, int], *key: int, is_stratified: bool = False) -> Noise:
    """Draw the noise of one batch; each row has its own generator.

    Args:
        shape: (B, T).
        key: e.g. seed, step and rank. A row's draws depend on the key and its index alone.
        is_stratified: spread the levels evenly over [0, 1) from one common offset, the offset of
            row 0. Each level is still uniform; the loss of a batch varies less.
    """
    num_rows, length = shape
    draws = torch.empty(num_rows, length + 1)
    for row in range(num_rows):
        generator = torch.Generator().manual_seed(mix_key(*key, row))
        draws[row].uniform_(generator=generator)
    level_B = draws[:, 0]
    if is_stratified:
        level_B = (level_B[0] + torch.arange(num_rows) / num_rows) % 1.0
    return Noise(level_B=level_B, uniform_BT=draws[:, 1:])


def mask_targets(
    ids_BT: Tensor,
    is_target_BT: Tensor,
    noise: Noise,
    mask_id: int,
    *,
    is_one_forced: bool = False,
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
            The released stages 2 and 3 force one for text, among all positions, condition
            included, and undo it there.
    """
    probability_B = (1.0 - MIN_PROBABILITY) * noise.level_B + MIN_PROBABILITY
    is_masked_BT = (noise.uniform_BT < probability_B[:, None]) & is_target_BT
    if is_one_forced:
        # Draws are independent, so the lowest one among the targets is anywhere equally likely.
        lowest_B = noise.uniform_BT.masked_fill(~is_target_BT, torch.inf).argmin(-1)
        is_forced_B = ~is_masked_BT.any(-1) & is_target_BT.any(-1)
        is_masked_BT[is_forced_B, lowest_B[is_forced_B]] = True
    return Masked(
        ids_BT=ids_BT.masked_fill(is_masked_BT, mask_id),
        is_masked_BT=is_masked_BT,
        probability_B=probability_B,
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
    form: Normalisation, masked: Masked, labels_BT: Tensor, answer_length_B: Tensor
) -> Tensor:
    """Weight of each position's cross-entropy, float32 [B, T]; 0 where there is no loss.

    With p the row's masking probability, B the rows and T the row length:

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
    """
    rows, length = masked.is_masked_BT.shape
    has_loss_BT = masked.is_masked_BT & (labels_BT != IGNORE)
    if form == "mean":
        return has_loss_BT / has_loss_BT.sum().clamp(min=1)
    weight_B = 1.0 / masked.probability_B
    if form == "llada_sft":
        weight_B = weight_B / (answer_length_B * rows)
    elif form == "release":
        weight_B = weight_B / masked.is_masked_BT.sum().clamp(min=1)
    else:
        weight_B = weight_B / (rows * length)
    return weight_B[:, None] * has_loss_BT


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


def cross_entropy(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Cross-entropy of each position, float32 [N], computed in float32; 0 where `IGNORE`."""
    return F.cross_entropy(logits_NC.float(), labels_N, ignore_index=IGNORE, reduction="none")
