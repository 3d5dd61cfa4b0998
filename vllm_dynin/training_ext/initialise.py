"""Initial weights for a small model trained from nothing."""

from __future__ import annotations

import torch

from vllm_dynin.reference.backbone import LLaDA

SHARED_SCALE = 0.5
"""Size of the direction that all token embeddings have in common, per component."""


@torch.no_grad()
def initialise(model: LLaDA, seed: int) -> None:
    """Draw all weights in place. Norms start at 1.

    Matrices are normal with variance 1 / inputs, those that write to the residual stream smaller
    by sqrt(2 · layers). Two things are not customary, and word tasks are learnt several times
    faster with them (docs/training.md):

    - Embeddings are of size 1 and share one random direction. The transformer has no biases, so
      only such a direction gives queries and keys a part that does not depend on the token, which
      is what attention to a relative position needs.
    - The untied head starts as the embeddings, so attending to a token already favours it.
    """
    generator = torch.Generator().manual_seed(seed)
    residual_scale = (2 * model.config.n_layers) ** -0.5
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            weight.fill_(1.0)
            continue
        drawn = torch.randn(weight.shape, generator=generator) * weight.shape[1] ** -0.5
        if name.endswith(("attn_out.weight", "ff_out.weight")):
            drawn *= residual_scale
        weight.copy_(drawn)
    table = model.model.transformer.wte.weight
    rows, hidden = table.shape
    shared = SHARED_SCALE * torch.randn(hidden, generator=generator)
    embeddings = torch.randn(rows, hidden, generator=generator) + shared
    table.copy_(embeddings)
    model.head_weight.copy_(embeddings * hidden**-0.5)
