"""Kernel A: what is proposed at each row of logits, and how sure that is, in one pass over the row.

The definition is in rows.py, and for a vocabulary-parallel head in row_partials.py.
"""

from __future__ import annotations

from torch import Tensor

from vllm_dynin.kernels.choice import Implementation, chosen
from vllm_dynin.kernels.row_partials import merge_partials_ref, row_partials_ref
from vllm_dynin.kernels.rows import (
    RowFlag,
    RowInputs,
    RowStatistics,
    guided_logits,
    row_statistics_ref,
)

__all__ = [
    "RowFlag",
    "RowInputs",
    "RowStatistics",
    "guided_logits",
    "merge_partials",
    "row_partials",
    "row_statistics",
]


def row_statistics(rows: RowInputs) -> RowStatistics:
    """Propose a column for each row and say how sure it is; without a device sync.

    Args:
        rows: logits and whose they are.

    Returns:
        What `row_statistics_ref` returns: the same columns; the other numbers to about 1e-13 on a
        CPU, and as `row_statistics_triton` says on a GPU.

    Raises:
        ValueError: DYNIN_KERNELS asks for what this device cannot run.
    """
    match chosen(rows.logits_RK.device):
        case Implementation.NUMBA:
            from vllm_dynin.kernels.row_statistics_cpu import row_statistics_cpu

            return row_statistics_cpu(rows)
        case Implementation.TRITON | Implementation.CUDA:
            from vllm_dynin.kernels.row_statistics_triton import row_statistics_triton

            return row_statistics_triton(rows)
        case _:
            return row_statistics_ref(rows)


def row_partials(rows: RowInputs) -> Tensor:
    """What one rank of a vocabulary-parallel head knows of each row, to be gathered.

    Args:
        rows: logits of the rank's columns, `first_column` its first one.

    Returns:
        int64 [R, 4], 32 bytes a row: Σ exp(z - max) without the largest, Σ (z - max) exp(z - max)
        (float64 bits); the largest z (NaN for a row that is not finite) and the second (float32
        bits, low and high half); z of the rank's proposal and its column, -1 for none.
    """
    if chosen(rows.logits_RK.device) in (Implementation.TRITON, Implementation.CUDA):
        from vllm_dynin.kernels.row_statistics_triton import row_partials_triton

        return row_partials_triton(rows)
    return row_partials_ref(rows)


def merge_partials(parts_PR4: Tensor, rows: RowInputs) -> RowStatistics:
    """`row_statistics` of all columns, from the partials of every rank.

    Args:
        parts_PR4: int64 [P, R, 4], in the order of the columns.
        rows: of any rank; its logits are not read.
    """
    if chosen(parts_PR4.device) in (Implementation.TRITON, Implementation.CUDA):
        from vllm_dynin.kernels.row_statistics_triton import merge_partials_triton

        return merge_partials_triton(parts_PR4, rows)
    return merge_partials_ref(parts_PR4, rows)
