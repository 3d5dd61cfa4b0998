"""Cross-entropy over the columns of the head, a stated number of logits at a time.

A text position has 126,000 to 138,752 logits: 16 rows of a thousand masked positions are 9 GB of
them in float32, and plain autograd keeps three tensors of that size until the backward pass. Here
the rows go through the head in chunks, and what is kept is one number a row; the backward pass
computes each chunk again. The head's gradient is one table for all directions, to which every
chunk adds in place; slicing the head for each direction makes a whole table for each.

Shape suffixes: N positions, D hidden size, R rows of the head, C columns of a softmax, n rows of a
chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vllm_dynin.processors.templates import IGNORE
from vllm_dynin.training_ext.directions import IdRanges

MAX_LOGITS = 2**27
"""Logits alive at once by default: 967 rows of the widest softmax, 0.5 GiB in float32."""


@dataclass(frozen=True, kw_only=True)
class HeadRows:
    """Rows of one direction and the softmax over them.

    Args:
        hidden_ND: final hidden states.
        labels_N: int64 column of each, or `IGNORE`.
        columns: half-open ranges of head rows, in the order of the columns.
        is_float32: compute the cross-entropy in float32, else in the dtype of the logits.
    """

    hidden_ND: Tensor
    labels_N: Tensor
    columns: IdRanges
    is_float32: bool = True


def head_losses(
    weight_RD: Tensor, rows: Sequence[HeadRows], max_logits: int = MAX_LOGITS
) -> list[Tensor]:
    """Cross-entropy of each position [N] of each part, float32; 0 where `IGNORE`.

    Under autocast the products are computed in its dtype, as `F.linear` would.

    Args:
        weight_RD: the head.
        rows: by direction.
        max_logits: logits that may be alive at once, at least a row's.

    Raises:
        ValueError: max_logits is not positive, or columns lie outside the head.
    """
    if max_logits < 1:
        raise ValueError(f"max_logits={max_logits} must be at least 1")
    for part in rows:
        if any(not 0 <= start < stop <= len(weight_RD) for start, stop in part.columns):
            raise ValueError(f"columns {part.columns} lie outside the head's {len(weight_RD)} rows")
    kind = weight_RD.device.type
    dtype = weight_RD.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    hidden = [part.hidden_ND.to(dtype) for part in rows]
    found: tuple[Tensor, ...] = _HeadLosses.apply(weight_RD, tuple(rows), max_logits, *hidden)
    return list(found)


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight_RD: Tensor, rows: tuple[HeadRows, ...], max_logits: int, *hidden: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.parts = [(part.columns, part.is_float32) for part in rows]
        ctx.max_logits = max_logits
        labels, levels, losses = [], [], []
        with torch.autocast(weight_RD.device.type, enabled=False):
            for part, hidden_ND in zip(rows, hidden, strict=True):
                loss_N = hidden_ND.new_zeros(len(hidden_ND), dtype=torch.float32)
                level_N2 = loss_N.new_zeros(len(hidden_ND), 2)
                for span in _chunks(len(hidden_ND), part.columns, max_logits):
                    logits_nC = _logits(hidden_ND[span], weight_RD, part.columns, part.is_float32)
                    loss_N[span], level_N2[span] = _losses(logits_nC, part.labels_N[span])
                    del logits_nC  # or it lives on while the next chunk's are made
                labels.append(part.labels_N)
                levels.append(level_N2)
                losses.append(loss_N)
        ctx.save_for_backward(weight_RD, *hidden, *labels, *levels)
        return tuple(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        weight_RD, *rest = ctx.saved_tensors
        count = len(ctx.parts)
        hidden, labels, levels = rest[:count], rest[count : 2 * count], rest[2 * count :]
        of_weight = torch.zeros_like(weight_RD) if ctx.needs_input_grad[0] else None
        of_hidden: list[Tensor | None] = []
        for index, (columns, is_float32) in enumerate(ctx.parts):
            hidden_ND, label_N = hidden[index], labels[index]
            of_hidden_ND = torch.zeros_like(hidden_ND) if ctx.needs_input_grad[3 + index] else None
            for span in _chunks(len(hidden_ND), columns, ctx.max_logits):
                slope_nC = _logits(hidden_ND[span], weight_RD, columns, is_float32)
                top_n, sum_n = levels[index][span].unbind(-1)
                slope_nC.sub_(top_n[:, None]).sub_(sum_n[:, None]).exp_()
                label_n = label_N[span]
                slope_nC.scatter_add_(
                    -1, label_n.clamp(min=0)[:, None], slope_nC.new_full((len(label_n), 1), -1.0)
                )
                scale_n = gradients[index][span].masked_fill(label_n == IGNORE, 0.0)
                slope_nC = slope_nC.mul_(scale_n[:, None]).to(hidden_ND.dtype)
                to = (of_weight, None if of_hidden_ND is None else of_hidden_ND[span])
                _add_gradients(slope_nC, hidden_ND[span], weight_RD, columns, *to)
                del slope_nC
            of_hidden.append(of_hidden_ND)
        return of_weight, None, None, *of_hidden


def _chunks(num_rows: int, columns: IdRanges, max_logits: int) -> Iterator[slice]:
    size = max(1, max_logits // sum(stop - start for start, stop in columns))
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def _logits(hidden_nD: Tensor, weight_RD: Tensor, columns: IdRanges, is_float32: bool) -> Tensor:
    parts = [hidden_nD @ weight_RD[a:b].to(hidden_nD.dtype).T for a, b in columns]
    logits_nC = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    return logits_nC.float() if is_float32 else logits_nC


def _losses(logits_nC: Tensor, label_n: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [n], and what turns logits into logarithms of probabilities [n, 2]; float32.

    That is the largest logit, and the logarithm of the sum of exponentials below it: apart, because
    their sum rounds. Destroys the logits, so that no second tensor of their size is needed.
    """
    top_n = logits_nC.amax(-1)
    right_n = logits_nC.gather(-1, label_n.clamp(min=0)[:, None])[:, 0]
    sum_n = logits_nC.sub_(top_n[:, None]).exp_().sum(-1, dtype=torch.float32).log()
    loss_n = sum_n + (top_n - right_n).float()
    return loss_n.masked_fill(label_n == IGNORE, 0.0), torch.stack((top_n.float(), sum_n), dim=-1)


def _add_gradients(
    slope_nC: Tensor,
    hidden_nD: Tensor,
    weight_RD: Tensor,
    columns: IdRanges,
    of_weight_RD: Tensor | None,
    of_hidden_nD: Tensor | None,
) -> None:
    """Add what a chunk's slopes mean for the head and for its rows, in place."""
    offset = 0
    for start, stop in columns:
        part_nC = slope_nC[:, offset : offset + stop - start]
        offset += stop - start
        if of_hidden_nD is not None:
            of_hidden_nD.addmm_(part_nC, weight_RD[start:stop].to(part_nC.dtype))
        if of_weight_RD is None:
            continue
        if of_weight_RD.dtype == part_nC.dtype:
            of_weight_RD[start:stop].addmm_(part_nC.T, hidden_nD)
        else:  # a float32 head under autocast
            of_weight_RD[start:stop] += part_nC.T @ hidden_nD
