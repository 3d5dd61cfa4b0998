"""Proposals drawn from the softmax itself, as the image and speech decoders make them."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_dynin.canvas import Parity
from vllm_dynin.sampling.confidence import Proposals


def propose_sampled(
    logits_RK: Tensor,
    generator: torch.Generator | None,
    *,
    temperature: float,
    parity: Parity,
) -> Proposals:
    """Propose a column per row and score it by its probability.

    Args:
        logits_RK: logits of masked slots over the allowed columns; a column at -inf is never
            proposed. Not modified.
        generator: source of the draws, owned by the caller and advanced; None for the arg-max.
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
        logits_RK = logits_RK.float()
    if temperature > 0:
        # 1 is by far the most common, and dividing by it would only copy.
        scaled_RK = logits_RK if temperature == 1 else logits_RK / max(temperature, 1e-5)
        p_RK = scaled_RK.softmax(-1)
        noise_RK = torch.empty_like(p_RK).exponential_(generator=generator)
        noise_RK.clamp_(min=torch.finfo(noise_RK.dtype).tiny)  # 0 / 0 would win the arg-max
        column_R = (p_RK / noise_RK).argmax(-1)
    else:
        p_RK = logits_RK.softmax(-1)
        column_R = logits_RK.argmax(-1)
    return Proposals(column=column_R, confidence=p_RK.gather(-1, column_R[:, None])[:, 0])
