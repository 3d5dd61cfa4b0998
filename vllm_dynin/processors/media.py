"""Which codecs a checkpoint comes with, and what a medium becomes before they are run.

The frontend opens, resizes and resamples media and must know how many tokens each will be; the
codecs themselves run where the model runs. So the folder of each codec is found once, and its
weights are loaded by whoever encodes or decodes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor

from vllm_dynin.config import LLaDAConfig
from vllm_dynin.processors.codecs.clock import CODEC_CLOCK
from vllm_dynin.processors.codecs.image import ImageCodec, image_codec_config
from vllm_dynin.processors.codecs.loading import resolve_checkpoint
from vllm_dynin.processors.codecs.speech import SpeechCodec, SpeechInput
from vllm_dynin.tokens import Vocabulary

logger = logging.getLogger(__name__)

IMAGE_CODEC, SPEECH_CODEC = "image_codec", "speech_codec"
"""Fields of `config.json` that name a codec, and folders of a checkpoint that hold one."""

AUDIO_RATE = 16_000
"""Samples per second at which speech codecs listen."""

_PUBLISHED = {
    ("dynin_omni", IMAGE_CODEC): "snu-aidas/magvitv2",
    ("dynin_omni", SPEECH_CODEC): "snu-aidas/emova_speech_tokenizer_hf",
    ("mmada", IMAGE_CODEC): "showlab/magvitv2",
}


@dataclass(frozen=True)
class CodecFolders:
    """Local folders of a checkpoint's codecs; None where there is none.

    Args:
        image: folder of the image codec.
        speech: folder of the speech codec.
    """

    image: str | None = None
    speech: str | None = None

    @classmethod
    def find(cls, model_path: str, config: LLaDAConfig) -> CodecFolders:
        """Look in the config, then in the checkpoint, then for the published one.

        A codec that cannot be had switches its modality off; the log says so.
        """
        image = speech = None
        if config.image_codebook_size:
            named = getattr(config, IMAGE_CODEC, None)
            image = _find(model_path, config.model_type, IMAGE_CODEC, named)
        if config.speech_codebook_size:
            named = getattr(config, SPEECH_CODEC, None)
            speech = _find(model_path, config.model_type, SPEECH_CODEC, named)
        return cls(image=image, speech=speech)


def published_codec(model_type: str, name: str) -> str | None:
    """Repository of the codec that a family was published with; None where there is none.

    Args:
        model_type: of the checkpoint.
        name: `IMAGE_CODEC` or `SPEECH_CODEC`.
    """
    return _PUBLISHED.get((model_type, name))


@cache
def _find(model_path: str, model_type: str, name: str, named: str | None) -> str | None:
    inside = Path(model_path) / (named or name)
    reference = str(inside) if inside.is_dir() else named or published_codec(model_type, name)
    if reference is None:
        return None
    try:
        folder = resolve_checkpoint(reference)
        if not inside.is_dir() or _has_pickles(folder):
            check_has_weights(folder, reference)
    except ValueError as error:
        logger.warning("%s is off: %s", name.replace("_codec", " input and output"), error)
        return None
    return str(folder)


def _has_pickles(folder: Path) -> bool:
    """Whether weights are there in a form that is not read.

    A folder of the checkpoint without any is damaged, which ends the start (checkpoint_check.py).
    """
    return any(file.suffix in (".bin", ".pt", ".pth", ".ckpt") for file in folder.iterdir())


def check_has_weights(folder: Path, name: str) -> None:
    """Check that a codec has weights that can be read, before anything relies on it.

    Args:
        folder: of the codec.
        name: what it goes by: a folder or a repository.

    Raises:
        ValueError: it has none, or only pickles.
    """
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{name} has no *.safetensors file; `vllm-dynin fetch MODEL DIRECTORY` brings a model "
            "and its codecs in one folder, converted; or download the codec's .bin, .ckpt or .pth "
            "file and convert it: vllm-dynin convert-codec FILE DIRECTORY"
        )


class MediaCodecs:
    """The codecs of one checkpoint, loaded at first use or by `load`.

    Args:
        folders: where they are.
        device: where they run.
        vocabulary: ids of the checkpoint.
    """

    def __init__(self, folders: CodecFolders, device: torch.device, vocabulary: Vocabulary) -> None:
        self.device = device
        self._folders, self._vocabulary = folders, vocabulary

    def load(self) -> None:
        """Load those that there are.

        Raises:
            ValueError: one cannot be loaded, or has more codes than the vocabulary.
        """
        if self._folders.image is not None:
            _ = self.image
        if self._folders.speech is not None:
            _ = self.speech

    @cached_property
    def image(self) -> ImageCodec:
        """The image codec.

        Raises:
            ValueError: the checkpoint has none, or it has more codes than the vocabulary.
        """
        codec = ImageCodec.from_pretrained(
            required_folder(self._folders.image, "image"), device=self.device
        )
        _check_size("image", codec.num_codes, len(self._vocabulary.image))
        return codec

    @cached_property
    def speech(self) -> SpeechCodec:
        """The speech codec.

        Raises:
            ValueError: the checkpoint has none, or it has more units than the vocabulary.
        """
        codec = SpeechCodec.from_pretrained(
            required_folder(self._folders.speech, "speech"), device=self.device
        )
        _check_size("speech", codec.num_units, len(self._vocabulary.speech))
        return codec

    def image_ids(self, pixels_B3HW: Tensor) -> Tensor:
        """int64 [B, N]: token ids of normalised images."""
        codec = self.image
        with CODEC_CLOCK.timed("image", self.device):
            codes = codec.encode_pixels(pixels_B3HW)
        return codes + self._vocabulary.image.start

    def speech_ids(self, waveform_N: Tensor) -> Tensor:
        """int64 [U]: token ids of a recording at `AUDIO_RATE`, repeats collapsed."""
        codec = self.speech
        with CODEC_CLOCK.timed("speech", self.device):
            units = codec.encode(waveform_N.cpu().numpy(), AUDIO_RATE)
        return torch.tensor(units, dtype=torch.int64) + self._vocabulary.speech.start


def required_folder(folder: str | None, medium: str) -> str:
    """The folder of a codec that cannot be done without.

    Args:
        folder: as `CodecFolders` has it.
        medium: `image` or `speech`.

    Raises:
        ValueError: there is none.
    """
    if folder is None:
        raise ValueError(
            f"this checkpoint has no {medium} codec; put one into its folder as {medium}_codec/, "
            f"or name one in config.json as {medium}_codec"
        )
    return folder


def _check_size(medium: str, found: int, expected: int) -> None:
    if found > expected:
        raise ValueError(
            f"the {medium} codec has {found} codes but the vocabulary {expected}; use the codec "
            "that belongs to the checkpoint"
        )


@cache
def codec_patch(folder: str) -> int:
    """Pixels per code, along each side, of the image codec in a folder."""
    return image_codec_config(Path(folder)).patch


@cache
def speech_input(folder: str) -> SpeechInput:
    """What the speech codec in a folder takes."""
    return SpeechInput.of(Path(folder))
