"""What the model proposes at masked slots, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

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


def gumbel_scores(logits_RK: Tensor, temperature: float, noise_RK: Tensor) -> Tensor:
    """Scores whose arg-max is a sample of softmax(logits / temperature).

    Args:
        logits_RK: any floating dtype.
        temperature: above 0.
        noise_RK: float64 uniform draws in (0, 1).

    Returns:
        float64 [R, K]: `exp(logit) / (-ln u) ** temperature`.

    Source: `add_gumbel_noise` of LLaDA / Dynin-Omni; float64 because lower precision measurably
    hurts generation (their comment, after arXiv 2409.02908).
    """
    return logits_RK.double().exp() / (-noise_RK.log()) ** temperature


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
    if temperature > 0:
        assert draws is not None
        noise_RK = draws.uniform(logits_RK.shape[-1])
        column = gumbel_scores(logits_RK, temperature, noise_RK).argmax(-1)
    else:
        column = logits_RK.argmax(-1)
    if remasking == "random":
        assert draws is not None
        confidence = draws.ranking(torch.float64)
    else:
        chosen = logits_RK.gather(-1, column[:, None]).double()[:, 0]
        confidence = (chosen - logits_RK.double().logsumexp(-1)).exp()
    return Proposals(column=column, confidence=confidence)
