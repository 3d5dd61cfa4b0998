"""Kernel B: which proposals a denoising step keeps, masks again or revokes, and what is open then.

The definition is in unmask_rules.py.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from vllm_dynin.kernels.choice import Implementation, chosen
from vllm_dynin.kernels.step_table import Ranking, Rule
from vllm_dynin.kernels.unmask_rules import (
    ALL_RANKINGS,
    ALL_RULES,
    Candidates,
    Canvases,
    NextRows,
    unmask_ref,
)

__all__ = ["Candidates", "Canvases", "NextRows", "unmask"]


def unmask(
    canvases: Canvases,
    table_BC: Tensor,
    candidates: Candidates,
    following: NextRows | None,
    *,
    width: int,
    rules: Collection[Rule] = ALL_RULES,
    rankings: Collection[Ranking] = ALL_RANKINGS,
    revokes: bool = True,
) -> None:
    """Decide the slots of every request's window, in place and without a device sync.

    Slots are ranked (`Ranking`; ties: the lower slot first) and as many of the best are kept as
    the rule says, at least `MIN` and at most `MAX` and the masked ones there are. Rule.REMASK ranks
    from the other end: the worst `COUNT` stay masked, ties: the lower slot stays masked. A masked
    slot that has no row is not decided. Then, where `REVOKE_MAX` says so, decided slots whose
    token's probability is below `REVOKE_BELOW` are masked again, the least probable first (ties:
    the lower slot), at most `REVOKE_MAX` and one fewer than were decided in this step, so that
    every step makes progress.

    Args:
        canvases: written.
        table_BC: int64, the step table; not modified. No two rows own the same canvas.
        candidates: rows of this step.
        following: written; None where nobody reads it.
        width: W, at least as many slots as any window of this step or the next has, at most N.
        rules: the rules that occur, where the host knows them; spares the definition work.
        rankings: the rankings that occur.
        revokes: whether any request revokes.

    Raises:
        ValueError: DYNIN_KERNELS asks for what this device cannot run.

    Source: LLaDA `generate.py` (SCHEDULE), `mask_by_random_topk` of Dynin-Omni (REMASK), Fast-dLLM
    arXiv 2505.22618 (THRESHOLD, FACTOR), arXiv 2606.02955 (FRECHET), arXiv 2505.24857 (ENTROPY),
    WINO arXiv 2507.18578 (revoking).
    """
    everything = (canvases, table_BC, candidates, following)
    match chosen(table_BC.device):
        case Implementation.NUMBA:
            from vllm_dynin.kernels.unmask_cpu import unmask_cpu

            unmask_cpu(*everything, width=width, rankings=rankings)
        case Implementation.TRITON:
            from vllm_dynin.kernels.unmask_triton import unmask_triton

            unmask_triton(*everything, width=width)
        case Implementation.CUDA:
            from vllm_dynin.kernels.unmask_cuda import unmask_cuda

            unmask_cuda(*everything, width=width)
        case Implementation.TORCH:
            unmask_ref(*everything, width=width, rules=rules, rankings=rankings, revokes=revokes)
