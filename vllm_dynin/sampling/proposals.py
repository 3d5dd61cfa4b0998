"""Proposals drawn from the softmax itself, as the image and speech decoders make them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vllm_dynin.canvas import Parity
from vllm_dynin.sampling.block import LogitRows
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.confidence import Proposals
from vllm_dynin.sampling.logprobs import RowLogprobs, row_logprobs
from vllm_dynin.sampling.tiles import row_tiles

GeneratorOf = Callable[[torch.device, int], torch.Generator | None]
"""`generator_of(device, tile)`: source of the draws of one tile of rows; None draws nothing."""


def propose_sampled(
    logits_RK: Tensor,
    *,
    temperature: float,
    parity: Parity,
    generator: torch.Generator | None,
) -> Proposals:
    """Propose a column per row and score it by its probability.

    Args:
        logits_RK: logits of masked slots over the allowed columns; a column at -inf is never
            proposed. Not modified.
        temperature: 0 proposes the arg-max; above 0 the logits are divided by it and a column is
            sampled.
        parity: `default` computes in float32; `reference` in the dtype of the logits, so that in
            bfloat16 probabilities, draws and confidences are rounded and often tie.
        generator: source of the draws, owned by the caller and advanced; None for the arg-max.

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


def propose_in_tiles(
    slots: Tensor,
    logits: LogitRows,
    columns: Columns,
    *,
    temperature: float,
    parity: Parity,
    generator_of: GeneratorOf,
    logprobs: RowLogprobs | None,
    start: int,
) -> Proposals:
    """Propose for all rows, a tile of rows at a time, so that memory stays bounded.

    Args:
        slots: int64 [R], slots of the canvas the rows belong to.
        logits: gives the guided logits of rows; called for one tile after another.
        columns: allowed ids.
        temperature: as for `propose_sampled`.
        parity: as for `propose_sampled`.
        generator_of: as described there.
        logprobs: where to keep the log-probabilities of the proposals, or None. A slot proposed
            for again is overwritten, so that the step that decided it stands.
        start: first slot of the region, row 0 of `logprobs`.
    """
    proposed, confidences = [], []
    for tile, first, stop in row_tiles(slots.shape[0], columns.width):
        part = columns.forbid_excluded(logits(first, stop))
        found = propose_sampled(
            part,
            temperature=temperature,
            parity=parity,
            generator=generator_of(part.device, tile),
        )
        proposed.append(found.column)
        confidences.append(found.confidence)
        if logprobs is not None:
            ids, num_top = columns.ids(part.device), logprobs.ids.shape[1] - 1
            details = row_logprobs(part, found.column, ids, num_top)
            rows = torch.arange(stop - first, device=part.device)
            logprobs.store(slots[first:stop] - start, details, rows)
    return Proposals(column=torch.cat(proposed), confidence=torch.cat(confidences))
