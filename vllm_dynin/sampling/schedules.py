"""How many tokens each denoising step unmasks, and how steps are shared out over blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_POWER = re.compile(r"pow(?=[\d.]*[1-9])(\d+|\d*\.\d+)")


@dataclass(frozen=True, kw_only=True)
class BlockSpan:
    """One block of a region: slots `[start, stop)` and the denoising steps granted to it."""

    start: int
    stop: int
    num_steps: int


def transfer_counts(num_masked: int, num_steps: int) -> list[int]:
    """Tokens to unmask at each of `num_steps` steps so that all `num_masked` are unmasked.

    The first `num_masked % num_steps` steps unmask one token more than the others.

    Args:
        num_masked: masked slots, 0 allowed.
        num_steps: at least 1.

    Returns:
        `num_steps` counts that add up to `num_masked`. With more steps than tokens the last ones
        are 0: such a step changes nothing, and the drivers skip its forward.

    Source: `get_num_transfer_tokens` of LLaDA / Dynin-Omni.
    """
    base, remainder = divmod(num_masked, num_steps)
    return [base + (step < remainder) for step in range(num_steps)]


def block_spans(num_slots: int, block_length: int, num_steps: int) -> Iterator[BlockSpan]:
    """Cut `num_slots` into blocks of `block_length` and share `num_steps` out among them.

    The original requires that the block length divides the slots and that the number of blocks
    divides the steps. The rule here is the same where that holds, and extends it where it does
    not: the last block may be shorter, and a block that ends at slot e has had
    `floor(num_steps * e / num_slots)` steps by then, at least one of them its own.

    Args:
        num_slots: slots to fill, at least 1.
        block_length: tokens per block, at least 1; more than `num_slots` means one block.
        num_steps: total over all blocks, at least 1.
    """
    for start in range(0, num_slots, block_length):
        stop = min(start + block_length, num_slots)
        share = num_steps * stop // num_slots - num_steps * start // num_slots
        yield BlockSpan(start=start, stop=stop, num_steps=max(1, share))


def mask_ratio(schedule: str, t: Tensor) -> Tensor:
    """Share of the targets that is masked at time t: 1 at t = 0, down to about 0 at t = 1.

    Args:
        schedule: `cosine` cos(πt/2); `linear` 1 - t; `pow<E>` 1 - t^E, e.g. `pow2` or `pow0.5`;
            `sigmoid` from -3 to 3.
        t: floating, any shape, in [0, 1]; decoding uses float32 as the original does.

    Returns:
        Ratios of the same shape and dtype. All but cosine are clamped to [1e-6, 1]; cosine at
        t = 1 is -4.4e-8 in float32.

    Raises:
        ValueError: the schedule is unknown.

    Source: `get_mask_schedule` of Dynin-Omni (after MaskGIT / Muse).
    """
    if schedule == "cosine":
        return torch.cos(t * math.pi * 0.5)
    if schedule == "linear":
        return (1 - t).clamp(1e-6, 1)
    if schedule == "sigmoid":
        low, high = torch.tensor(-3.0).sigmoid(), torch.tensor(3.0).sigmoid()
        return ((high - (t * 6 - 3).sigmoid()) / (high - low)).clamp(1e-6, 1)
    if (power := _POWER.fullmatch(schedule)) is not None:
        return (1 - t ** float(power[1])).clamp(1e-6, 1)
    raise ValueError(
        f"mask schedule {schedule!r} is unknown; use cosine, linear, sigmoid, or pow with a "
        "positive exponent such as pow2 or pow0.5"
    )
