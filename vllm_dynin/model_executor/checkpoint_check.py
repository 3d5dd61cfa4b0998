"""What comes with the weights, read and checked before the server opens its port.

A client cannot mend a checkpoint: found at start, its faults are the operator's to see; found at a
request, a load balancer would go on sending.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from vllm_dynin import checkpoint, compat
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.defaults import read_defaults
from vllm_dynin.planning import check_defaults
from vllm_dynin.processors.codecs.styles import parse_style
from vllm_dynin.processors.media import CodecFolders, MediaCodecs
from vllm_dynin.processors.text_tokenizer import check_tokenizer

if TYPE_CHECKING:
    from vllm.config import ModelConfig


def read_directions(model_config: ModelConfig) -> None:
    """Put what the checkpoint says about its directions into its configuration, in place.

    Raises:
        ValueError: it says what cannot be honoured.
    """
    config = cast(LLaDAConfig, model_config.hf_config)
    found = read_defaults(*compat.generation_configs(model_config))
    for each in (config, cast(LLaDAConfig, model_config.hf_text_config)):
        each.generation_defaults = found
    check_defaults(config)


def weight_shapes(model_config: ModelConfig) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the weights by name; None where the checkpoint is not a local folder with weights.

    Raises:
        ValueError: a file is damaged or missing; the message names it.
    """
    folder = Path(model_config.model)
    if not folder.is_dir() or not any(folder.glob("*.safetensors*")):
        return None
    return checkpoint.tensor_shapes(folder)


def check_companions(model_config: ModelConfig) -> None:
    """Check tokenizer and codecs of a checkpoint, by loading them.

    Raises:
        ValueError: the tokenizer is another checkpoint's, or a codec cannot be loaded or is another
            one's.
    """
    config = cast(LLaDAConfig, model_config.hf_config)
    tokenizer = compat.tokenizer_of(model_config)
    if tokenizer is not None:
        try:
            check_tokenizer(tokenizer, config.vocabulary)
        except ValueError as error:
            raise ValueError(f"the tokenizer {model_config.tokenizer!r}: {error}") from None
    folders = CodecFolders.find(model_config.model, config)
    codecs = MediaCodecs(folders, torch.device("cpu"), config.vocabulary)
    styles: list[str] = []
    codecs.load()
    if folders.speech is not None:
        styles = codecs.speech.styles
    for direction, values in config.generation_defaults.items():
        style = values.get("style")
        if style is not None and styles and parse_style(style).name not in styles:
            raise ValueError(
                f"generation_config.json: dynin.{direction}.style={style!r} is not one of the "
                f"{len(styles)} of the checkpoint's speech codec"
            )
