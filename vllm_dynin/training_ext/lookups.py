"""Attention heads that start as look-ups, for a small model whose answers consist of them.

"Find the word before me in the question and say what stands behind it there" takes two layers that
know of each other: the first tells each position what its neighbours are, the second compares that.
By chance they meet late; here they start as that, and training does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from vllm_dynin.reference.backbone import Block, LLaDA

_SHARPNESS = 60.0
"""How much a neighbour head prefers its neighbour; see `_neighbour`."""
_NOISE = 0.2
"""What is left of the random start in those heads."""
_TOLD = 2.0
"""Size of what a neighbour is known by, against the position's own token."""
_MATCH = 2.0


@torch.no_grad()
def start_as_lookups(
    model: LLaDA,
    seed: int,
    neighbours: Sequence[int],
    matches: Sequence[tuple[int, int]],
) -> None:
    """Overwrite the heads of the first two layers of a model that `initialise` has drawn.

    Args:
        model: its token embeddings share one direction.
        seed: of what is drawn.
        neighbours: of each head of the first layer, the offset of the position it looks at.
        matches: of the first heads of the second layer, two of those offsets (a, b): a position
            looks where the neighbour at b is what its own neighbour at a is, and says what stands
            there. Other heads are left as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    size = model.config.head_dim
    first, second = (cast(Block, block) for block in model.model.transformer.blocks[:2])
    shared = _even_embeddings(model)
    unit = shared / shared.norm()
    value = _orthonormal(size, model.config.d_model, generator)
    value -= (value @ unit)[:, None] * unit  # what all tokens share tells nothing
    apart = _orthonormal(len(neighbours) * size, model.config.d_model, generator)
    told = dict(zip(neighbours, apart.split(size), strict=True))
    for head, offset in enumerate(neighbours):
        _neighbour(first, head, offset, shared, model.config.rope_theta)
        _head(first.v_proj.weight, head, size).copy_(value)
        first.attn_out.weight[:, head * size : (head + 1) * size] = _TOLD * told[offset].T
    for head, (own, other) in enumerate(matches):
        # Slowly turning components alone: what is compared may stand far apart.
        mixed = torch.zeros(size, size)
        low = torch.arange(size) % (size // 2) >= size // 4
        mixed[low] = _orthonormal(int(low.sum()), size, generator)
        _head(second.q_proj.weight, head, size).copy_(_MATCH * mixed @ told[own])
        _head(second.k_proj.weight, head, size).copy_(_MATCH * mixed @ told[other])
        said = _orthonormal(size, model.config.d_model, generator)
        _head(second.v_proj.weight, head, size).copy_(said)
        second.attn_out.weight[:, head * size : (head + 1) * size] = said.T


def _even_embeddings(model: LLaDA) -> Tensor:
    """Make all token embeddings as long, and alike in what they share, which is returned."""
    table = model.model.transformer.wte.weight
    shared = table.mean(0)
    unit = shared / shared.norm()
    own = table - (table @ unit)[:, None] * unit
    table.copy_(own * (table.shape[1] ** 0.5 / own.norm(dim=1, keepdim=True)) + shared)
    model.head_weight.copy_(table * table.shape[1] ** -0.5)
    return shared


def _neighbour(block: Block, head: int, offset: int, shared: Tensor, theta: float) -> None:
    """Queries and keys of every token alike, turned against each other by the offset."""
    size = block.head_dim
    unit = shared / shared.norm()
    length = shared.norm() / (1 + shared.square().mean()).sqrt()  # of it in a normalised embedding
    frequency = 1.0 / theta ** (torch.arange(0, size, 2) / size)
    plain = torch.cat([torch.ones(size // 2), torch.zeros(size // 2)])
    turned = torch.cat([(offset * frequency).cos(), (offset * frequency).sin()])
    for projection, direction in ((block.q_proj, turned), (block.k_proj, plain)):
        weight = _head(projection.weight, head, size)
        weight.mul_(_NOISE).add_(_SHARPNESS**0.5 / length * direction[:, None] * unit)


def _head(weight: Tensor, head: int, size: int) -> Tensor:
    return weight[head * size : (head + 1) * size]


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal rows [rows, columns]."""
    drawn = torch.randn(columns, rows, generator=generator)
    return torch.linalg.qr(drawn).Q.T.contiguous()
