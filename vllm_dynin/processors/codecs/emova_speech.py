"""The published speech tokenizer (EMOVA's, which Dynin-Omni uses): networks and checkpoint.

The file holds training parts too. What is not needed is listed in `DROPPED`; every other key must
find its place, and every place its key.

Source: key list of `snu-aidas/emova_speech_tokenizer_hf` as the wrapper class makes it
(`models/modeling_emova_speech_tokenizer.py` of Dynin-Omni @ d6e3ca8).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vllm_dynin.processors.codecs.loading import load_exact
from vllm_dynin.processors.codecs.precision import full_float32
from vllm_dynin.processors.codecs.speech_features import LogMelConfig
from vllm_dynin.processors.codecs.speech_to_units import SpeechToUnits, SpeechToUnitsConfig
from vllm_dynin.processors.codecs.spiral import SpiralConfig
from vllm_dynin.processors.codecs.styles import Style, StyleTable
from vllm_dynin.processors.codecs.units_to_speech import UnitsToSpeech, UnitsToSpeechConfig
from vllm_dynin.processors.codecs.vits_generator import GeneratorConfig

EMOVA_MODEL_TYPE = "emova_speech_tokenizer"
# The wrapper was made for exactly one pair of networks.
_UNIT_TYPES = {
    "s2u_unit_type": "40ms_multilingual_8888",
    "u2s_unit_type": "40ms_multilingual_8888_xujing_cosyvoice_FT",
}
DROPPED = (
    r"encoder\.encoder\.mask_emb$",  # SPIRAL's training mask
    r"encoder\.decoder\.",  # CTC head
    r"decoder\.enc_q\.",  # posterior encoder
    r"decoder\.emb_g\.",  # speakers of the first training stage
    r"decoder\.enc_r\.",  # style encoder, for cloning a voice
    r"decoder\.dp\.post_",  # the duration flow's other direction
    r"decoder\.dp\.flows\.1\.",  # left out at inference, as VITS does
)
_QUANTIZER = "encoder.quantizer."
_FEATURE_BUFFERS = (r"s2u\.features\.",)  # computed here, and compared with the file's
_RENAMED = (
    (r"^encoder\.encoder\.feature_encoder\.", "s2u.feature_encoder."),
    (r"^encoder\.encoder\.wav2spec\.featurizer\.", "s2u.features."),
    (r"^encoder\.pre_quant\.", "s2u.pre_quant."),
    (r"^decoder\.(?=(enc_p|dp|flow|dec)\.)", "u2s."),
    (r"^style_embedding\.", "u2s.style_embedding."),
    (r"\.conv\.conv\.", ".conv."),
    (r"\.pos_conv\.0\.", ".pos_conv."),
    (r"\.(GAMMA|gamma)$", ".weight"),
    (r"\.(BETA|beta)$", ".bias"),
)


def our_name(key: str) -> str:
    """A checkpoint's key under our module names; weight-norm suffixes are kept."""
    for pattern, replacement in _RENAMED:
        key = re.sub(pattern, replacement, key)
    return key


class EmovaSpeech(nn.Module):
    """Both networks of the published tokenizer. See `SpeechBackend` for what the members mean."""

    max_chunk_seconds = 60
    """The longest utterance the original encodes as one."""

    def __init__(
        self,
        s2u: SpeechToUnitsConfig | None = None,
        u2s: UnitsToSpeechConfig | None = None,
        styles: StyleTable | None = None,
        chunk_frames: int = 86,
    ) -> None:
        super().__init__()
        self.s2u, self.u2s = SpeechToUnits(s2u), UnitsToSpeech(u2s)
        if self.s2u.config.num_units != self.u2s.config.num_units:
            raise ValueError(
                f"the encoder has {self.s2u.config.num_units} units and the decoder "
                f"{self.u2s.config.num_units}; they must be the same"
            )
        self.styles = styles or StyleTable(num_rows=self.u2s.config.num_styles)
        self.chunk_frames = chunk_frames
        self.num_units = self.s2u.config.num_units
        self.input_rate = self.s2u.config.features.sample_rate
        self.output_rate = self.u2s.config.sample_rate
        self.samples_per_unit = self.s2u.config.samples_per_unit
        self.min_samples = self.s2u.config.features.min_samples
        self.requires_grad_(False).eval()

    @classmethod
    def from_tensors(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> EmovaSpeech:
        """Build from a checkpoint.

        Args:
            config: its config.json. Sizes are not in the published one; other sizes can be given
                as `speech_to_units` and `units_to_speech` (fields of the config classes).
            tensors: all of its tensors, in any of the three spellings of weight norm.

        Raises:
            ValueError: the config describes other networks, or a key is missing, unexpected,
                mis-shaped or (where computable) wrong.
        """
        for name, wanted in _UNIT_TYPES.items():
            if config.get(name, wanted) != wanted:
                raise ValueError(
                    f"config.json has {name}={config[name]!r}; only {wanted!r} is implemented"
                )
        u2s = _u2s_config(config.get("units_to_speech", {}))
        u2s = dataclasses.replace(
            u2s,
            num_styles=config.get("u2s_num_styles", u2s.num_styles),
            style_channels=config.get("u2s_dim_styles", u2s.style_channels),
        )
        module = cls(
            encoder_config(config.get("speech_to_units", {})),
            u2s,
            style_table(config),
        )
        _check_quantizer(tensors, module.s2u.config.levels)
        given: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            if key.startswith(_QUANTIZER) or any(re.match(pattern, key) for pattern in DROPPED):
                continue
            name = our_name(key)
            if name in given:
                raise ValueError(f"the checkpoint has {key} in two spellings; keep one")
            given[name] = tensor
        load_exact(module, given, optional=_FEATURE_BUFFERS)
        return module

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return self.u2s.style_embedding.weight.device

    def raw_units(self, waveform: Tensor) -> Tensor:
        """See `SpeechBackend`."""
        with full_float32(self.device):
            return self.s2u([waveform.to(self.device)])[0].cpu()

    def stream(
        self,
        units: Tensor,
        style: Style,
        *,
        speed: float,
        generator: torch.Generator,
        max_samples: int,
    ) -> Iterator[Tensor]:
        """See `SpeechBackend`. Pieces are about a second long."""
        pieces = self.u2s.stream(
            units.to(self.device),
            self.u2s.style_vector(self.styles.row(style)),
            self.chunk_frames,
            speed=speed,
            generator=generator,
            max_frames=max_samples // self.u2s.config.generator.hop,
        )
        for piece in pieces:
            yield piece.float().cpu()


def _check_quantizer(tensors: Mapping[str, Tensor], levels: tuple[int, ...]) -> None:
    """The quantiser has no weights; what the file says about it must be what we compute."""
    basis = [1]
    for count in levels[:-1]:
        basis.append(basis[-1] * count)
    known = {"_levels_np": list(levels), "_basis": basis}
    for key in (key for key in tensors if key.startswith(_QUANTIZER)):
        name = key.removeprefix(_QUANTIZER)
        if name not in known or tensors[key].flatten().tolist() != known[name]:
            raise ValueError(
                f"{key}={tensors[key].flatten().tolist()[:8]} is not what levels {levels} give; "
                "this is another speech tokenizer"
            )


def _known_fields(config_class: type, given: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(config_class)}
    if unknown := sorted(set(given) - names):
        raise ValueError(f"config.json: {config_class.__name__} has no {', '.join(unknown)}")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}


def style_table(config: Mapping[str, Any]) -> StyleTable:
    """Styles of the decoder, from a config.json."""
    u2s = _u2s_config(config.get("units_to_speech", {}))
    return StyleTable(config.get("u2s_style2idx"), config.get("u2s_num_styles", u2s.num_styles))


def encoder_config(given: Mapping[str, Any]) -> SpeechToUnitsConfig:
    """Sizes of the unit encoder, from the field `speech_to_units` of a config.json."""
    fields = _known_fields(SpeechToUnitsConfig, given)
    for name, part in (("features", LogMelConfig), ("encoder", SpiralConfig)):
        if name in fields:
            fields[name] = part(**_known_fields(part, fields[name]))
    return SpeechToUnitsConfig(**fields)


def _u2s_config(given: Mapping[str, Any]) -> UnitsToSpeechConfig:
    fields = _known_fields(UnitsToSpeechConfig, given)
    if "generator" in fields:
        fields["generator"] = GeneratorConfig(**_known_fields(GeneratorConfig, fields["generator"]))
    return UnitsToSpeechConfig(**fields)
