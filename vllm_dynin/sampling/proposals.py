"""Proposals drawn from the softmax itself, as the image and speech decoders make them."""

from __future__ import annotations

from torch import Tensor

from vllm_dynin.canvas import Parity
from vllm_dynin.kernels.row_statistics import row_statistics
from vllm_dynin.kernels.step_table import Proposal
from vllm_dynin.sampling.confidence import Proposals, rows_of_request
from vllm_dynin.sampling.noise import SlotDraws


def propose_sampled(
    logits_RK: Tensor,
    draws: SlotDraws | None,
    *,
    temperature: float,
    parity: Parity,
) -> Proposals:
    """Propose a column per row and score it by its probability.

    Args:
        logits_RK: logits of masked slots over the allowed columns; a column at -inf is never
            proposed. Not modified.
        draws: of the slots the rows belong to; None for the arg-max.
        temperature: 0 proposes the arg-max; above 0 the logits are divided by it and a column is
            sampled.
        parity: `default` computes in float32; `reference` in the dtype of the logits, so that in
            bfloat16 probabilities, draws and confidences are rounded and often tie.

    Returns:
        Proposals; the confidence is the column's probability, in the dtype computed in.

    Source: `t2i_generate` and `t2s_generate_mmu_like` of Dynin-Omni: softmax, then
    `torch.multinomial`. PARITY: of the latter only the distribution is kept (the arg-max of p / e
    with e ~ Exp(1)); the stream of draws depends on the version of torch.
    """
    if parity is Parity.DEFAULT:
        proposal = Proposal.SOFTMAX if temperature > 0 else Proposal.SOFTMAX_ARGMAX
        found = row_statistics(rows_of_request(logits_RK, draws, proposal, temperature))
        return Proposals(column=found.column, confidence=found.probability.float())
    if temperature > 0:
        # 1 is by far the most common, and dividing by it would only copy.
        scaled_RK = logits_RK if temperature == 1 else logits_RK / max(temperature, 1e-5)
        p_RK = scaled_RK.softmax(-1)
        assert draws is not None
        noise_RK = draws.exponential(p_RK.shape[-1], p_RK.dtype)
        column_R = (p_RK / noise_RK).argmax(-1)
    else:
        p_RK = logits_RK.softmax(-1)
        column_R = logits_RK.argmax(-1)
    return Proposals(column=column_R, confidence=p_RK.gather(-1, column_R[:, None])[:, 0])
