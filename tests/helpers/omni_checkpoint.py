"""A random Dynin-Omni checkpoint with the published vocabulary: all 138,752 rows, real codecs.

Small everywhere else: hidden width 64, two layers, 16×16 pixels a code, and media of a few codes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vllm_dynin import checkpoint
from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.processors.chat import CHAT_TEMPLATE
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.patch_threshold import PatchThresholdConfig
from vllm_dynin.processors.codecs.speech import TOY_SPEECH_DIRECTORY
from vllm_dynin.processors.media import IMAGE_CODEC, SPEECH_CODEC
from vllm_dynin.processors.text_tokenizer import control_strings
from vllm_dynin.tokens import DYNIN_OMNI

NUM_ROWS = 138_752
"""Rows of the published table."""

# The standard deviation of a logit is about 5, so that neither two kernels' rounding (1e-6) nor
# the sum over 8,192 or 126,349 columns makes arg-max or confidences close calls.
_EMBEDDING_STD, _LAYER_STD, _HEAD_STD = 1.0, 0.3, 0.6
# Factors on rows of the head, so that answers end early now and then.
_BOOST = {"eos": 1.6, "eot": 1.5, "eoa": 1.4, "mask": 1.7}


def omni_config() -> DyninOmniConfig:
    """Sizes of the checkpoint: 16 codes an image, 4 codes a frame, 9 codes an edited image."""
    return DyninOmniConfig(
        d_model=64,
        n_heads=2,
        n_layers=2,
        mlp_hidden_size=128,
        max_sequence_length=4096,
        rope_theta=10_000.0,
        vocab_size=NUM_ROWS,
        image_resolution=64,
        video_resolution=32,
        video_num_frames=3,
        generation_resolution=64,
        edit_resolution=48,
    )


def full_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokenizer with 126,080 pieces, so that control tokens have their published ids.

    Without merges: a text is its bytes, the other pieces are there to be generated.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    num_fillers = DYNIN_OMNI.num_text_pieces - len(alphabet)
    pieces = [*alphabet, *(f"filler{number}" for number in range(num_fillers))]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(string, special=True, normalized=False) for string in control_strings()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def random_tensors(config: DyninOmniConfig, seed: int = 11) -> dict[str, Tensor]:
    """Weights of the whole network, float32."""
    generator = torch.Generator().manual_seed(seed)
    std = {checkpoint.EMBEDDING: _EMBEDDING_STD, checkpoint.HEAD: _HEAD_STD}
    tensors = {}
    for name, shape in checkpoint.expected_shapes(config, NUM_ROWS).items():
        if len(shape) == 1:
            tensors[name] = 1 + 0.2 * torch.randn(shape, generator=generator)
        else:
            tensors[name] = torch.randn(shape, generator=generator) * std.get(name, _LAYER_STD)
    for name, factor in _BOOST.items():
        tensors[checkpoint.HEAD][getattr(config.vocabulary, name)] *= factor
    return tensors


def write_omni_checkpoint(folder: Path) -> Path:
    """Write the checkpoint with tokenizer and codecs; returns the folder."""
    config = omni_config()
    checkpoint.save_checkpoint(folder, config, random_tensors(config), full_tokenizer())
    codec = ImageCodec.from_config(PatchThresholdConfig(channels=3), seed=3)
    codec.save_pretrained(folder / IMAGE_CODEC)
    shutil.copytree(TOY_SPEECH_DIRECTORY, folder / SPEECH_CODEC)
    return folder
