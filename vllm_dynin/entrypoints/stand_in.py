"""A checkpoint of random weights with real codecs, written in a second.

It takes and makes every medium, so everything around the model can be shown and tested; what it
answers means nothing. A trained checkpoint has the same files and takes its place.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from vllm_dynin import checkpoint
from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.speech import TOY_SPEECH_DIRECTORY, SpeechCodec
from vllm_dynin.processors.media import IMAGE_CODEC, SPEECH_CODEC
from vllm_dynin.processors.train_tokenizer import NUM_BYTES, train_tokenizer
from vllm_dynin.tokens import NUM_CONTROL_TOKENS

TINY_IMAGE_DIRECTORY = Path(__file__).parents[1] / "assets" / "tiny-magvit"
"""A small image codec that was trained on photographs."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose pieces are the 256 bytes, with the family's control tokens behind them."""
    return train_tokenizer([], NUM_BYTES)


def stand_in_config() -> DyninOmniConfig:
    """Sizes that let every direction run in seconds on one core."""
    codec = ImageCodec.from_pretrained(TINY_IMAGE_DIRECTORY)
    return DyninOmniConfig(
        text_vocab_size=NUM_BYTES + NUM_CONTROL_TOKENS,
        image_codebook_size=codec.num_codes,
        codebook_size=codec.num_codes,
        speech_codebook_size=SpeechCodec.from_pretrained().num_units,
        d_model=64,
        n_heads=2,
        n_layers=2,
        mlp_hidden_size=128,
        max_sequence_length=2_048,
        rope_theta=10_000.0,
        image_patch=codec.patch,
        image_resolution=64,
        video_resolution=32,
        video_num_frames=5,
        generation_resolution=64,
        edit_resolution=64,
        speech_text_block=257,
    )


def write_stand_in(folder: Path, *, seed: int = 1) -> Path:
    """Write the checkpoint, its tokenizer and its codecs.

    Args:
        folder: must not exist yet.
        seed: of the weights.

    Returns:
        The folder.
    """
    config = stand_in_config()
    generator = torch.Generator().manual_seed(seed)
    scales = {checkpoint.EMBEDDING: 1.0, checkpoint.HEAD: 0.3}
    tensors = {}
    for name, shape in checkpoint.expected_shapes(config, config.vocab_size).items():
        if len(shape) == 1:  # norms
            tensors[name] = torch.ones(shape)
        else:
            tensors[name] = torch.randn(shape, generator=generator) * scales.get(name, 0.15)
    checkpoint.save_checkpoint(folder, config, tensors, byte_tokenizer())
    shutil.copytree(TINY_IMAGE_DIRECTORY, folder / IMAGE_CODEC, dirs_exist_ok=True)
    shutil.copytree(TOY_SPEECH_DIRECTORY, folder / SPEECH_CODEC, dirs_exist_ok=True)
    return folder
