"""A random checkpoint of the size of the tiny world: its codecs, 16 codes an image, byte tokens."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from vllm_dynin import checkpoint
from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.entrypoints.stand_in import byte_tokenizer
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.patch_threshold import PatchThresholdConfig
from vllm_dynin.processors.codecs.speech import TOY_SPEECH_DIRECTORY, SpeechCodec
from vllm_dynin.processors.media import IMAGE_CODEC, SPEECH_CODEC
from vllm_dynin.training_ext.tiny import digits


def write_world_checkpoint(folder: Path) -> Path:
    """Write it; the folder must not exist."""
    tokenizer, codec = byte_tokenizer(), ImageCodec.from_config(PatchThresholdConfig())
    config = DyninOmniConfig(
        text_vocab_size=len(tokenizer),
        image_codebook_size=codec.num_codes,
        codebook_size=codec.num_codes,
        speech_codebook_size=SpeechCodec.from_pretrained().num_units,
        d_model=64,
        n_heads=2,
        n_layers=1,
        mlp_hidden_size=128,
        max_sequence_length=512,
        rope_theta=100.0,
        image_patch=codec.patch,
        image_resolution=digits.IMAGE_SIDE,
        video_resolution=digits.CLIP_SIDE,
        video_num_frames=digits.CLIP_FRAMES,
        generation_resolution=digits.IMAGE_SIDE,
        edit_resolution=digits.IMAGE_SIDE,
        image_text_block=65,
        speech_text_block=129,
    )
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) / 4
        for name, shape in checkpoint.expected_shapes(config, config.vocab_size).items()
    }
    checkpoint.save_checkpoint(folder, config, tensors, tokenizer)
    codec.save_pretrained(folder / IMAGE_CODEC)
    shutil.copytree(TOY_SPEECH_DIRECTORY, folder / SPEECH_CODEC)
    return folder
