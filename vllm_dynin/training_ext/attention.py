"""What a position may attend to in training, and what the released code does instead.

Source: `training/train_dynin_omni_stage*.py` of AIDASLab/Dynin-Omni@d6e3ca8.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vllm_dynin.tokens import Vocabulary
from vllm_dynin.training_ext.collate import Batch
from vllm_dynin.training_ext.objective import Masked

Attention = Literal["visible", "released_all", "released_bias", "released_eos"]
"""`visible`: everything but hidden padding, as in serving. `released_all`: the released stages 1
and 2, padding too. `released_bias`: their image rows, where the mask was assigned into floats and
became +1 on the score of a visible pair, so padding is attended to at 1 : e. `released_eos`: stage
3, where padding and every EOS that is not masked at the moment are hidden."""


def seen(
    batch: Batch, masked: Masked, attention: Attention, vocabulary: Vocabulary
) -> tuple[Tensor | None, Tensor | None]:
    """The keys a batch may attend to, bool [B, T], or the bias of its attention scores.

    Args:
        batch: for the released forms, collated with its padding.
        masked: the batch after masking.
        attention: which form.
        vocabulary: the id layout.

    Returns:
        `is_visible_BT` and `bias_BTT`, at most one of which is not None.
    """
    visible_BT = batch.is_visible_BT
    if attention == "visible":
        return visible_BT, None
    everything_BT = torch.ones_like(batch.is_target_BT)
    is_pad_BT = batch.ids_BT == vocabulary.pad
    # What ends a shorter row is no part of the released sequence and stays hidden.
    inside_BT = everything_BT if visible_BT is None else visible_BT | is_pad_BT
    if attention == "released_all":
        return inside_BT, None
    if attention == "released_eos":
        return inside_BT & ~is_pad_BT & (masked.ids_BT != vocabulary.eos), None
    return None, released_bias(inside_BT & ~is_pad_BT, inside_BT)


def released_bias(is_visible_BT: Tensor, is_inside_BT: Tensor | None = None) -> Tensor:
    """Bias [B, T, T] of attention scores: 1 where both ends are visible, 0 elsewhere, float32.

    PARITY: meant as a mask, but assigned into a tensor of floats.

    Args:
        is_visible_BT: bool.
        is_inside_BT: bool; keys outside get -inf. None for all.
    """
    bias_BTT = (is_visible_BT[:, :, None] & is_visible_BT[:, None, :]).float()
    if is_inside_BT is None:
        return bias_BTT
    return bias_BTT.masked_fill(~is_inside_BT[:, None, :], -torch.inf)
