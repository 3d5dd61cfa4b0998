"""Configuration classes for `model_type` dynin_omni, mmada and llada.

They read the keys the published `config.json` files carry (OLMo's spelling: `d_model`, `n_heads`,
…), answer under the names vLLM and transformers ask for (`hidden_size`, …), and ignore the fields
known to be stale (`vocab_size`, `embedding_size`, `tie_word_embeddings`, `use_cache`, `vid_merge`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from transformers import PretrainedConfig

from vllm_dynin.tokens import NUM_CONTROL_TOKENS, Vocabulary

# Fields that describe a transformer we do not build, with the one value we do build.
_ONLY_SUPPORTED: dict[str, Any] = {
    "alibi": False,
    "attention_layer_norm": False,
    "block_type": "llama",
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "rope": True,
    "scale_logits": False,
    "weight_tying": False,
}


_NOTHING_STATED: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


class LLaDAConfig(PretrainedConfig):
    """A bidirectional LLaMA-style transformer with an untied head, as LLaDA-8B defines it.

    Deliberately without `canvas_length`: with it vLLM treats the model as its own kind of diffusion
    model and answers 400 to `temperature` and `seed` (see docs/engine.md).

    Raises:
        ValueError: the file describes a transformer this package does not implement.
    """

    model_type = "llada"
    # Without an annotation, because with one it were a field that is written to config.json.
    generation_defaults = _NOTHING_STATED
    """Defaults of the directions by name, as `defaults.read_defaults` has read them of
    `generation_config.json`."""
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "num_hidden_layers": "n_layers",
        "intermediate_size": "mlp_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }

    def __init__(
        self,
        *,
        d_model: int = 4096,
        n_heads: int = 32,
        n_kv_heads: int | None = None,
        n_layers: int = 32,
        mlp_hidden_size: int | None = 12288,
        max_sequence_length: int = 4096,
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 500_000.0,
        vocab_size: int | None = None,
        text_vocab_size: int | None = None,
        image_codebook_size: int = 0,
        speech_codebook_size: int = 0,
        **kwargs: Any,
    ) -> None:
        for name, supported in _ONLY_SUPPORTED.items():
            value = kwargs.get(name, supported)
            if value != supported:
                raise ValueError(
                    f"config.json has {name}={value!r}; only {name}={supported!r} is implemented, "
                    "so this checkpoint cannot be served"
                )
        if kwargs.get("activation_type", "silu") not in ("silu", "swiglu"):
            raise ValueError(
                f"config.json has activation_type={kwargs['activation_type']!r}; only 'silu' "
                "(a gated MLP with a separate gate matrix) is implemented"
            )
        self.d_model, self.n_heads, self.n_layers = d_model, n_heads, n_layers
        self.n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if mlp_hidden_size is None:  # the original falls back to mlp_ratio
            mlp_hidden_size = int(kwargs.get("mlp_ratio", 4)) * d_model
        self.mlp_hidden_size = mlp_hidden_size
        self.max_sequence_length = max_sequence_length
        self.rms_norm_eps, self.rope_theta = rms_norm_eps, rope_theta
        self.image_codebook_size = image_codebook_size
        self.speech_codebook_size = speech_codebook_size
        default_text = Vocabulary().text.stop
        self.text_vocab_size = default_text if text_vocab_size is None else text_vocab_size
        super().__init__(**kwargs)
        self.tie_word_embeddings = False  # not serialised by the original, reads back as True
        # Padded to 128 rows as the published table is; the checkpoint's own row count wins at load.
        self.vocab_size = vocab_size or -(-self.vocabulary.num_used // 128) * 128

    @property
    def vocabulary(self) -> Vocabulary:
        """The id layout: `text_vocab_size` is `len(tokenizer)`, control tokens included."""
        return Vocabulary(
            num_text_pieces=self.text_vocab_size - NUM_CONTROL_TOKENS,
            num_image_codes=self.image_codebook_size,
            num_speech_units=self.speech_codebook_size,
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads


class MMadaConfig(LLaDAConfig):
    """LLaDA plus 8,192 image codes (`Gen-Verse/MMaDA-8B-*`).

    Args:
        codebook_size: the original's name of `image_codebook_size`.
        image_patch: pixels per image code, along each side.
        image_resolution: pixels a side of an image that is asked about, where the request does
            not say (paper).
        video_resolution: the same for the frames of a video (paper).
        video_num_frames: frames taken of a video (paper).
        generation_resolution: pixels a side of a generated image (demo configuration).
        edit_resolution: pixels a side of an edited image and of its source (demo configuration).
        image_text_block: tokens of the text block of prompts for images (demo configuration).
        speech_text_block: the same for text to speech.
        video_text_block: the same for video to speech.
        kwargs: as for `LLaDAConfig`.
    """

    model_type = "mmada"

    def __init__(
        self,
        *,
        codebook_size: int = 8_192,
        image_patch: int = 16,
        image_resolution: int = 480,
        video_resolution: int = 224,
        video_num_frames: int = 5,
        generation_resolution: int = 512,
        edit_resolution: int = 336,
        image_text_block: int = 129,
        speech_text_block: int = 1025,
        video_text_block: int = 128,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("image_codebook_size", codebook_size)
        self.image_patch = image_patch
        self.image_resolution, self.video_resolution = image_resolution, video_resolution
        self.video_num_frames = video_num_frames
        self.generation_resolution, self.edit_resolution = generation_resolution, edit_resolution
        self.image_text_block, self.speech_text_block = image_text_block, speech_text_block
        self.video_text_block = video_text_block
        super().__init__(codebook_size=codebook_size, **kwargs)


class DyninOmniConfig(MMadaConfig):
    """MMaDA plus 4,096 speech units (`snu-aidas/Dynin-Omni`)."""

    model_type = "dynin_omni"

    def __init__(self, *, speech_codebook_size: int = 4_096, **kwargs: Any) -> None:
        super().__init__(speech_codebook_size=speech_codebook_size, **kwargs)


CONFIG_CLASSES: tuple[type[LLaDAConfig], ...] = (LLaDAConfig, MMadaConfig, DyninOmniConfig)
