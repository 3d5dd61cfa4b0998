"""Sequence packing: the rows of all directions in one sequence, without padding.

Attention stays within each row (it is block-diagonal), positions start again with each, and every
row keeps its own noise and weights, so that losses are those of the unpacked rows. What is saved is
the padding of rows to the longest of their direction, and one pass through the layers replaces one
a direction.

Attention over rows of different lengths is, in this order: xformers' block-diagonal mask where it
is installed and the model is on a GPU; PyTorch's `varlen_attn` on a GPU in half precision; else
PyTorch's attention over each run of rows of one length, on a CPU in float32.

Shape suffixes: S positions of all rows, H heads, K key/value heads, E head dimension, N positions
with a loss, D hidden size.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm_dynin.canvas import Task
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.training_ext.losses import Noised

logger = logging.getLogger(__name__)

VarlenOp = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]
"""Attention within rows: queries [S, H, E], keys and values [S, K, E], lengths → [S, H, E]."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The rows of a micro-batch behind each other.

    Args:
        ids_S: int64, masked.
        positions_S: int64, as in the unpacked rows.
        lengths: of each row; they add up to S.
        has_loss_S: bool; in each direction's span the positions with a loss, in the order of
            `Noised.labels_N`.
        spans: first position and end of each direction's rows.
    """

    ids_S: Tensor
    positions_S: Tensor
    lengths: tuple[int, ...]
    has_loss_S: Tensor
    spans: dict[Task, tuple[int, int]]


def pack(noised: Mapping[Task, Noised]) -> Packed:
    """Put rows behind each other; positions that nothing attends to are dropped.

    Raises:
        ValueError: a batch has an attention bias of its own, as in the released code.
    """
    ids, positions, has_loss = [], [], []
    lengths: list[int] = []
    spans: dict[Task, tuple[int, int]] = {}
    stop = 0
    for task, part in noised.items():
        if part.bias_BTT is not None:
            raise ValueError(
                f"rows of {task.value} have an attention bias, which packed rows cannot; use "
                "is_packed=false, or the default objective instead of the released one"
            )
        kept_BT = part.is_visible_BT
        if kept_BT is None:
            kept_BT = torch.ones_like(part.ids_BT, dtype=torch.bool)
        positions_BT = part.positions_BT
        if positions_BT is None:
            index_T = torch.arange(part.ids_BT.shape[1], device=part.ids_BT.device)
            positions_BT = index_T.expand_as(part.ids_BT)
        ids.append(part.ids_BT[kept_BT])
        positions.append(positions_BT[kept_BT])
        has_loss.append(part.has_loss_BT[kept_BT])
        lengths += kept_BT.sum(-1).tolist()
        start, stop = stop, stop + len(ids[-1])
        spans[task] = (start, stop)
    return Packed(
        ids_S=torch.cat(ids),
        positions_S=torch.cat(positions),
        lengths=tuple(lengths),
        has_loss_S=torch.cat(has_loss),
        spans=spans,
    )


def packed_hidden(model: LLaDA, noised: Mapping[Task, Noised]) -> dict[Task, Tensor]:
    """Final hidden states [N, D] of each direction's positions with a loss, from one pass."""
    packed, device = pack(noised), model.head_weight.device
    attend = RowAttention(packed.lengths)
    hidden_SD = model.hidden(
        packed.ids_S[None].to(device), packed.positions_S[None].to(device), attend
    )[0]
    has_loss_S = packed.has_loss_S.to(device)
    return {
        task: hidden_SD[start:stop][has_loss_S[start:stop]]
        for task, (start, stop) in packed.spans.items()
    }


class RowAttention:
    """Attention within each of several rows that lie behind each other.

    Args:
        lengths: of the rows.
        op: how; default what `best_op` picks for the tensors.
    """

    def __init__(self, lengths: Sequence[int], op: VarlenOp | None = None) -> None:
        self.lengths, self.op = lengths, op

    def __call__(self, q_1HSE: Tensor, k_1KSE: Tensor, v_1KSE: Tensor) -> Tensor:
        """Attended values [1, H, S, E]; the backbone calls this in place of its own."""
        op = self.op or best_op(q_1HSE.device.type, v_1KSE.dtype)
        # Rotated queries and keys are as values are under autocast.
        q, k, v = (x[0].transpose(0, 1).to(v_1KSE.dtype) for x in (q_1HSE, k_1KSE, v_1KSE))
        return op(q, k, v, self.lengths).transpose(0, 1)[None]


@cache
def best_op(device: str, dtype: torch.dtype) -> VarlenOp:
    """The fastest attention over rows that runs here; which one is logged once."""
    if device == "cuda" and importlib.util.find_spec("xformers") is not None:
        name, op = "xformers", _xformers
    elif device == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name, op = "torch varlen_attn", _varlen
    elif device == "cpu" and dtype == torch.bfloat16:
        name, op = "torch, row by row, in float32", _in_float32
    else:
        name, op = "torch, row by row", attend_by_runs
    logger.info("packed attention on %s in %s: %s", device, dtype, name)
    return op


def attend_by_runs(q_SHE: Tensor, k_SKE: Tensor, v_SKE: Tensor, lengths: Sequence[int]) -> Tensor:
    """One call for each run of neighbouring rows of one length; runs anywhere."""
    is_grouped = q_SHE.shape[1] != k_SKE.shape[1]
    runs = _runs(lengths)
    # One split has one concatenation as its gradient; slices would have a whole tensor each.
    cut = [x.split([count * length for count, length in runs]) for x in (q_SHE, k_SKE, v_SKE)]
    parts = []
    for (count, length), *rows in zip(runs, *cut, strict=True):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in rows)
        attended = F.scaled_dot_product_attention(q, k, v, enable_gqa=is_grouped)
        parts.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)


def _in_float32(q_SHE: Tensor, k_SKE: Tensor, v_SKE: Tensor, lengths: Sequence[int]) -> Tensor:
    """On a CPU the gradient of PyTorch's attention takes four times as long in bfloat16."""
    with torch.autocast("cpu", enabled=False):
        attended = attend_by_runs(q_SHE.float(), k_SKE.float(), v_SKE.float(), lengths)
    return attended.to(q_SHE.dtype)


def _runs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(rows, length) of each run of rows of one length; rows of no length are left out."""
    groups = itertools.groupby(length for length in lengths if length)
    return [(sum(1 for _ in group), length) for length, group in groups]


def _varlen(q_SHE: Tensor, k_SKE: Tensor, v_SKE: Tensor, lengths: Sequence[int]) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *itertools.accumulate(lengths)], device=q_SHE.device, dtype=torch.int32)
    longest = max(lengths)
    is_grouped = q_SHE.shape[1] != k_SKE.shape[1]
    attended = varlen_attn(q_SHE, k_SKE, v_SKE, ends, ends, longest, longest, enable_gqa=is_grouped)
    assert isinstance(attended, Tensor)  # a pair only where the log-sum-exp is asked for
    return attended


def _xformers(q_SHE: Tensor, k_SKE: Tensor, v_SKE: Tensor, lengths: Sequence[int]) -> Tensor:
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    groups = q_SHE.shape[1] // k_SKE.shape[1]
    k_SHE, v_SHE = (x.repeat_interleave(groups, dim=1) for x in (k_SKE, v_SKE))
    mask = BlockDiagonalMask.from_seqlens(list(lengths))
    attended: Tensor = memory_efficient_attention(
        q_SHE[None], k_SHE[None], v_SHE[None], attn_bias=mask
    )
    return attended[0]
