"""Decode with the plain-PyTorch model: the oracle every serving claim is held to."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.decoder import CanvasDecoder, Plan
from vllm_dynin.sampling.loop import denoise


@torch.inference_mode()
def run_plan(model: LLaDA, plan: Plan) -> Iterator[CanvasDecoder]:
    """Decode one planned request, yielding its decoder after every denoising step.

    Args:
        model: the reference model.
        plan: the request.
    """

    def forward(ids_T: Tensor, positions_T: Tensor, rows_R: Tensor, columns: Columns) -> Tensor:
        hidden = model.hidden(ids_T[None], positions_T[None])[0, rows_R]
        return model.head(hidden, columns.ids(hidden.device))

    yield from denoise(plan, forward, model.head_weight.device)
