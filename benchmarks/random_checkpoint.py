"""Checkpoints with random weights in the production format, for timings that need no meaning."""

from __future__ import annotations

from pathlib import Path

import torch

from vllm_dynin.checkpoint import expected_shapes, save_checkpoint
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.tokens import NUM_CONTROL_TOKENS

# name → sizes. Vocabularies are small so that a CPU's time goes where the name says.
SIZES: dict[str, dict[str, int]] = {
    # The forward costs next to nothing: what is left is the engine.
    "tiny": {"d_model": 64, "n_heads": 2, "n_layers": 2, "mlp_hidden_size": 128},
    # 51M parameters: the forward costs far more than the engine.
    "medium": {"d_model": 512, "n_heads": 8, "n_layers": 12, "mlp_hidden_size": 2048},
}
NUM_TEXT_PIECES = 512


def write_random_checkpoint(folder: Path, size: str, seed: int = 0) -> LLaDAConfig:
    """Write `folder/<size>` in fp32 and return its configuration.

    Args:
        folder: an existing folder.
        size: a name in `SIZES`.
        seed: of the weights.
    """
    config = LLaDAConfig(
        **SIZES[size],
        max_sequence_length=1024,
        text_vocab_size=NUM_TEXT_PIECES + NUM_CONTROL_TOKENS,
    )
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in expected_shapes(config, config.vocab_size).items():
        if len(shape) == 1:  # the gains of the norms
            tensors[name] = torch.ones(shape)
        else:
            # Variance kept from layer to layer, so that logits differ and arg-max has no ties.
            tensors[name] = torch.randn(shape, generator=generator) * shape[-1] ** -0.5
    save_checkpoint(folder / size, config, tensors)
    return config
