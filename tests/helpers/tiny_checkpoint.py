"""A random checkpoint in the production format, with a real tokenizer, written in a second.

Its answers mean nothing, but they depend on every prompt token, every position and every slot, and
they hold EOS and the mask id often enough that stopping and reference parity are put to work.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from helpers.tiny_tokenizer import make_tokenizer
from vllm_dynin import checkpoint
from vllm_dynin.config import DyninOmniConfig, LLaDAConfig
from vllm_dynin.tokens import NUM_CONTROL_TOKENS

NUM_PIECES = 320
MAX_LENGTH = 512

# Logits have a standard deviation near 2.4: far from saturating the confidence, while float32 noise
# between two attention kernels (about 1e-6 of a logit) stays far below the gaps that decide.
_EMBEDDING_STD, _LAYER_STD, _HEAD_STD = 1.0, 0.3, 0.3
# Boosted rows of the head: an answer of 32 tokens holds about two of these.
_BOOST = {"eos": 1.8, "eot": 1.6, "mask": 2.0}


def tiny_config(
    model_class: type[LLaDAConfig] = LLaDAConfig, *, num_heads: int = 2, layers: int = 2
) -> LLaDAConfig:
    """Sizes of a tiny checkpoint with heads of width 32; media families get a few codes."""
    media = {}
    if model_class is not LLaDAConfig:
        media["image_codebook_size"] = 16
    if model_class is DyninOmniConfig:
        media["speech_codebook_size"] = 12
    return model_class(
        text_vocab_size=NUM_PIECES + NUM_CONTROL_TOKENS,
        d_model=32 * num_heads,
        n_heads=num_heads,
        n_layers=layers,
        mlp_hidden_size=128,
        max_sequence_length=MAX_LENGTH,
        rope_theta=10_000.0,
        **media,
    )


def random_tensors(config: LLaDAConfig, seed: int = 5) -> dict[str, Tensor]:
    """Weights of the whole network, float32."""
    generator = torch.Generator().manual_seed(seed)
    std = {checkpoint.EMBEDDING: _EMBEDDING_STD, checkpoint.HEAD: _HEAD_STD}
    tensors = {}
    for name, shape in checkpoint.expected_shapes(config, config.vocab_size).items():
        if len(shape) == 1:  # norms: near one, so that a forgotten weight shows
            tensors[name] = 1 + 0.2 * torch.randn(shape, generator=generator)
        else:
            tensors[name] = torch.randn(shape, generator=generator) * std.get(name, _LAYER_STD)
    for name, factor in _BOOST.items():
        tensors[checkpoint.HEAD][getattr(config.vocabulary, name)] *= factor
    return tensors


def silence_broken_text(head: Tensor, tokenizer: PreTrainedTokenizerFast) -> None:
    """Make pieces that are part of a character hardly ever proposed, so that answers are text."""
    for token_id in range(NUM_PIECES):
        if "\ufffd" in tokenizer.decode([token_id]):
            head[token_id] = 0


def write_checkpoint(
    folder: Path,
    config: LLaDAConfig | None = None,
    *,
    seed: int = 5,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = 5 * 10**9,
) -> Path:
    """Write a checkpoint with its tokenizer; returns the folder."""
    config = tiny_config() if config is None else config
    tokenizer = make_tokenizer(config.vocabulary.num_text_pieces)
    tensors = {name: tensor.to(dtype) for name, tensor in random_tensors(config, seed).items()}
    silence_broken_text(tensors[checkpoint.HEAD], tokenizer)
    checkpoint.save_checkpoint(
        folder,
        config,
        tensors,
        tokenizer,
        max_shard_bytes=max_shard_bytes,
    )
    return folder
