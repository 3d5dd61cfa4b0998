"""Codecs with the published codebooks and random weights: 8,192 image codes, 4,096 speech units."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from vllm_dynin.processors.codecs.emova_speech import EMOVA_MODEL_TYPE, EmovaSpeech
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.magvit import MagvitConfig
from vllm_dynin.processors.codecs.speech_to_units import SpeechToUnitsConfig
from vllm_dynin.processors.codecs.units_to_speech import UnitsToSpeechConfig
from vllm_dynin.processors.media import IMAGE_CODEC, SPEECH_CODEC


def write_random_codecs(folder: Path, *, published_size: bool) -> None:
    """Write both codecs below a checkpoint's folder, over those that are there.

    Args:
        folder: of the checkpoint.
        published_size: networks as large as the published ones, else tiny ones; the codebooks are
            the published ones either way, so that every id of the vocabulary can be decoded.
    """
    image, s2u, u2s = MagvitConfig(), SpeechToUnitsConfig(), UnitsToSpeechConfig()
    if not published_size:
        image = dataclasses.replace(image, channels=8, norm_groups=4)
        s2u = dataclasses.replace(SpeechToUnitsConfig.tiny(), levels=s2u.levels)
        u2s = UnitsToSpeechConfig.tiny(u2s.num_units)
    ImageCodec.from_config(image, seed=3).save_pretrained(folder / IMAGE_CODEC)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        speech = EmovaSpeech(s2u, u2s)
    place = folder / SPEECH_CODEC
    for path in place.glob("*.safetensors"):
        path.unlink()
    place.mkdir(exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in speech.state_dict().items()},
        place / "model.safetensors",
    )
    config = {
        "model_type": EMOVA_MODEL_TYPE,
        "u2s_num_styles": u2s.num_styles,
        "u2s_dim_styles": u2s.style_channels,
        "speech_to_units": dataclasses.asdict(s2u),
        "units_to_speech": dataclasses.asdict(u2s),
    }
    (place / "config.json").write_text(json.dumps(config))
