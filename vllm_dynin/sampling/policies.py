"""Which masked slots a denoising step unmasks."""

from __future__ import annotations

import torch
from torch import Tensor


def select_to_unmask(confidence_R: Tensor, num_to_unmask: int) -> Tensor:
    """Pick the most confident rows.

    Args:
        confidence_R: floating [R], finite; not modified.
        num_to_unmask: rows to pick; more than there are picks all.

    Returns:
        int64 indices of the picked rows, ascending. Ties: the lower row (`torch.topk` leaves
        them open).

    Source: LLaDA `generate.py`, `low_confidence`.
    """
    order = torch.sort(confidence_R, descending=True, stable=True).indices
    return order[:num_to_unmask].sort().values
