"""What the model proposes at masked slots, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vllm_dynin.kernels.row_statistics import RowInputs, row_statistics
from vllm_dynin.kernels.step_table import Proposal, new_table, place, set_row
from vllm_dynin.sampling.noise import SlotDraws

Remasking = Literal["low_confidence", "random"]
"""How masked slots are ranked: by the proposal's probability, or at random."""


@dataclass(frozen=True)
class Proposals:
    """Candidate of each row.

    Args:
        column: int64 [R], index into the row's columns.
        confidence: float64 [R] in [0, 1].
    """

    column: Tensor
    confidence: Tensor


def propose(
    logits_RK: Tensor,
    draws: SlotDraws | None,
    *,
    temperature: float,
    remasking: Remasking,
) -> Proposals:
    """Propose a column per row and score the proposals.

    Args:
        logits_RK: logits of masked slots over the allowed columns; a column at -inf is never
            proposed. Not modified.
        draws: of the slots the rows belong to; may be None where nothing random is asked for.
        temperature: 0 proposes the arg-max, above 0 samples.
        remasking: what the confidence is.

    Returns:
        Proposals. `low_confidence` scores by the softmax of the clean logits in float64.

    Source: `mmu_generate` of Dynin-Omni, steps 4 and 5 of one denoising step.
    """
    proposal = Proposal.GUMBEL if temperature > 0 else Proposal.ARGMAX
    found = row_statistics(rows_of_request(logits_RK, draws, proposal, temperature))
    confidence = found.probability
    if remasking == "random":
        assert draws is not None
        confidence = draws.ranking(torch.float64)
    return Proposals(column=found.column, confidence=confidence)


def rows_of_request(
    logits_RK: Tensor, draws: SlotDraws | None, proposal: Proposal, temperature: float
) -> RowInputs:
    """Rows of one request, guided, for `row_statistics`; not modified.

    Args:
        logits_RK: any floating dtype.
        draws: of the slots the rows belong to; None where nothing is drawn.
        proposal: how a column is chosen.
        temperature: read where something is drawn.
    """
    device = logits_RK.device
    request_R = torch.zeros(len(logits_RK), dtype=torch.int64, device=device)
    table = new_table(1, pin=device.type == "cuda")
    slot_R, values = request_R, {"proposal": proposal, "temperature": temperature}
    if draws is not None:
        slot_R, of = draws.slots_R, draws.step
        values |= {"seed": of.seed, "step": of.step, "place": place(of.region, of.block)}
    set_row(table, 0, **values)
    table = table.to(device, non_blocking=True)
    return RowInputs(logits_RK, table, request_R, slot_R, proposals={proposal})
