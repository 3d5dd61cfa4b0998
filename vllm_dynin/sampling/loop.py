"""The reference driver: decode one request with any `forward`, without vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from vllm_dynin.canvas import Stream
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.decoder import CanvasDecoder, Plan
from vllm_dynin.sampling.guidance import guide

Forward = Callable[[Tensor, Tensor, Tensor, Columns], Tensor]
"""`forward(ids_T, positions_T, rows_R, columns)`: logits [R, K] of rows `rows_R` of one sequence
over the given columns, in the model's dtype. All rows attend to all rows."""


def denoise(plan: Plan, forward: Forward, device: torch.device) -> Iterator[CanvasDecoder]:
    """Decode one request, yielding its decoder after every denoising step.

    The decoder is the same object each time: `decoder.ids` is the canvas as it stands, and after
    the last step the result.

    Args:
        plan: the request.
        forward: the model.
        device: where the canvas lives and the draws are made.
    """
    decoder = CanvasDecoder(plan, device)
    while not decoder.finished:
        slots = decoder.wanted()
        logits = _guided_logits(decoder, slots, forward)
        decoder.step(slots, partial(_rows, logits))
        yield decoder


def _rows(logits_RK: Tensor, first: int, stop: int) -> Tensor:
    return logits_RK[first:stop]


def _guided_logits(decoder: CanvasDecoder, slots: Tensor, forward: Forward) -> Tensor:
    """Logits of the wanted slots, both streams run in full and combined."""
    canvas = decoder.plan.canvas
    logits = _stream_logits(canvas.conditional, decoder.ids, slots, decoder.columns, forward)
    if canvas.unconditional is None:
        return logits
    unconditional = _stream_logits(
        canvas.unconditional.stream,
        decoder.unconditional_ids(),
        slots,
        decoder.columns,
        forward,
    )
    return guide(logits, unconditional, decoder.plan.guidance_scale, canvas.unconditional.form)


def _stream_logits(
    stream: Stream, canvas_N: Tensor, slots: Tensor, columns: Columns, forward: Forward
) -> Tensor:
    device = canvas_N.device
    prompt = torch.tensor(stream.ids, dtype=torch.int64, device=device)
    positions = torch.tensor(stream.positions, dtype=torch.int64, device=device)
    behind = stream.canvas_start + torch.arange(len(canvas_N), device=device)
    return forward(
        torch.cat([prompt, canvas_N]),
        torch.cat([positions, behind]),
        slots + len(prompt),
        columns,
    )
