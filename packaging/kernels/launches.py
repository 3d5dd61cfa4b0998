"""Launches of every Triton kernel, in the forms that a step uses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from vllm_dynin.kernels.rotary_triton import rotate_qkv_triton
from vllm_dynin.kernels.row_statistics_triton import row_statistics_triton
from vllm_dynin.kernels.rows import RowInputs
from vllm_dynin.kernels.step_table import Proposal, new_table
from vllm_dynin.kernels.unmask_rules import Candidates, Canvases, NextRows
from vllm_dynin.kernels.unmask_triton import unmask_triton


def rows(num_columns: int, dtype: torch.dtype, proposal: Proposal, guided: bool = False) -> None:
    """Row statistics of zeros."""
    logits = torch.zeros(16, num_columns, dtype=dtype)
    index = torch.zeros(16, dtype=torch.int64)
    row_statistics_triton(
        RowInputs(
            logits,
            new_table(1),
            index,
            index,
            unconditional_UK=logits if guided else None,
            pair_R=index if guided else None,
            forbidden_K=torch.zeros(num_columns, dtype=torch.bool),
            proposals={proposal},
        )
    )


def steps(width: int, num_slots: int) -> None:
    """Unmasking of one window of that many slots."""
    slots = torch.arange(width)
    unmask_triton(
        Canvases(
            torch.zeros(1, num_slots, dtype=torch.int32),
            torch.zeros(1, num_slots, dtype=torch.uint8),
        ),
        new_table(1),
        Candidates(slots * 0, slots, slots, slots.double()),
        NextRows.empty(1, width, torch.device("cpu")),
        width=width,
    )


def rotations(dtype: torch.dtype) -> None:
    """Rotation of the heads of the 8B: 32 of queries and 32 of keys, of 128."""
    qkv = torch.zeros(4, 96 * 128, dtype=dtype)
    rotate_qkv_triton(qkv, torch.zeros(4, dtype=torch.int64), torch.zeros(8, 128), 64, 128)


LAUNCHES: dict[str, Callable[[], None]] = {
    "text, bfloat16, greedy": partial(rows, 126_349, torch.bfloat16, Proposal.ARGMAX),
    "text, float32, greedy": partial(rows, 126_349, torch.float32, Proposal.ARGMAX),
    "text, bfloat16, drawn": partial(rows, 126_349, torch.bfloat16, Proposal.GUMBEL),
    "image, bfloat16, guided": partial(rows, 8_192, torch.bfloat16, Proposal.SOFTMAX, True),
    "speech, bfloat16, guided": partial(rows, 4_098, torch.bfloat16, Proposal.SOFTMAX, True),
    "block of 32": partial(steps, 32, 1_024),
    "image of 1,024": partial(steps, 1_024, 1_024),
    "canvas of 4,096": partial(steps, 4_096, 4_096),
    "8B, bfloat16": partial(rotations, torch.bfloat16),
    "8B, float32": partial(rotations, torch.float32),
}
