"""Heads that start as look-ups look where they say, before any training."""

import pytest
import torch

from vllm_dynin.config import LLaDAConfig
from vllm_dynin.reference.backbone import LLaDA, rope_tables, rotate
from vllm_dynin.training_ext.initialise import initialise
from vllm_dynin.training_ext.lookups import start_as_lookups

NEIGHBOURS = (-1, -2, -3, 1)
MATCHES = ((-1, -1), (-2, -2), (-2, -1))


def attention(block, x, theta):
    """Attention probabilities [B, H, T, T] of a block."""
    tables = rope_tables(torch.arange(x.shape[1])[None], block.head_dim, theta)
    cos, sin = (table[:, None] for table in tables)
    normed = block.attn_norm(x)
    q, k = (rotate(block._heads(w(normed)), cos, sin) for w in (block.q_proj, block.k_proj))
    return ((q @ k.transpose(-1, -2)) / block.head_dim**0.5).softmax(-1), (cos, sin)


@pytest.mark.parametrize("theta", [1000.0, 10000.0])
def test_heads_look_at_neighbours_and_at_what_follows_a_match(theta):
    config = LLaDAConfig(
        d_model=128,
        n_heads=4,
        n_layers=4,
        mlp_hidden_size=320,
        rope_theta=theta,
        max_sequence_length=512,
        text_vocab_size=809,
    )
    found = {match: [] for match in MATCHES}
    for seed in range(4):
        model = LLaDA(config)
        initialise(model, seed)
        start_as_lookups(model, seed, NEIGHBOURS, MATCHES)
        generator = torch.Generator().manual_seed(seed)
        words = torch.stack([torch.randperm(500, generator=generator)[:40] for _ in range(16)])
        mask = torch.full((len(words), 1), config.vocabulary.mask)
        ids = torch.cat([words, words[:, 20:22], mask], dim=1)
        first, second = model.model.transformer.blocks[:2]
        with torch.no_grad():
            x = model.model.transformer.wte(ids)
            looked, tables = attention(first, x, theta)
            for head, offset in enumerate(NEIGHBOURS):
                assert looked[:, head].diagonal(offset, 1, 2)[:, 3:].mean() > 0.95, offset
            looked, _ = attention(second, first(x, *tables, None), theta)
        # … w20 w21 w22 … w20 w21 [mask]: the neighbours of the mask are w21 and w20.
        for head, (match, place) in enumerate(zip(MATCHES, (22, 22, 21), strict=True)):
            found[match].append(looked[:, head, -1, place].mean().item() * ids.shape[1])
    # On average several times as much as where heads look anywhere.
    assert all(sum(times) / len(times) > 3 for times in found.values()), found
