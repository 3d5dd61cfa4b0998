"""What every request has in common, and what it turns into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from vllm_dynin.codec_runner import CodecRunner
from vllm_dynin.config import LLaDAConfig, MMadaConfig
from vllm_dynin.processors.assemble import PromptAssembler
from vllm_dynin.processors.media import CodecFolders, required_folder
from vllm_dynin.processors.text_tokenizer import TextTokenizer
from vllm_dynin.requests.checks import check_fields, wrong
from vllm_dynin.sampling.params import DenoiseParams


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A request in vLLM's terms.

    Args:
        token_ids: the head, with placeholders for its media.
        options: ours, as the request is sent with them.
        media: opened media by vLLM's modality, in the order of their placeholders.
        media_options: `mm_processor_kwargs`.
    """

    token_ids: Sequence[int]
    options: DenoiseParams
    media: dict[str, list[Any]] = field(default_factory=dict)
    media_options: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What requests need to know of the checkpoint that answers them.

    Args:
        config: its configuration.
        tokenizer: its text tokenizer.
        folders: where its codecs are.
        codecs: runs them, for infilling.
    """

    config: LLaDAConfig
    tokenizer: TextTokenizer
    folders: CodecFolders
    codecs: CodecRunner

    @cached_property
    def assembler(self) -> PromptAssembler:
        """Builds the prompts."""
        return PromptAssembler.of_checkpoint(self.config, self.tokenizer)

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without control tokens."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    @property
    def image_folder(self) -> str:
        """Folder of the image codec; ValueError where there is none."""
        return required_folder(self.folders.image, "image")

    @property
    def speech_folder(self) -> str:
        """Folder of the speech codec; ValueError where there is none."""
        return required_folder(self.folders.speech, "speech")

    @property
    def media_config(self) -> MMadaConfig:
        """The configuration of a model with media.

        Raises:
            ValueError: the checkpoint is for text only.
        """
        if not isinstance(self.config, MMadaConfig):
            raise ValueError(
                f"a checkpoint of model_type {self.config.model_type!r} is for text only; use one "
                "of mmada or dynin_omni for media"
            )
        return self.config


@dataclass(frozen=True, kw_only=True)
class Request:
    """What every request may say.

    Args:
        options: ours, e.g. `DenoiseParams(steps=16, resolution=256)`; what is not set is the
            direction's default, the checkpoint's before the family's.
        max_tokens: length of a text or speech answer in tokens; None is the direction's default.
            An image's length is its resolution.
        temperature: None is the checkpoint's, or greedy for text and 1 for images and speech
            where it has none. 0 is greedy everywhere.
        seed: of all draws; None draws one.
        trajectory: keep how the answer filled in (`Result.trajectory`).

    Raises:
        ValueError: a field is not of its type.
    """

    default_temperature: ClassVar[float] = 1.0

    options: DenoiseParams = field(default_factory=DenoiseParams)
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    trajectory: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def prompt(self, checkpoint: Checkpoint) -> Prompt:
        """The request in vLLM's terms.

        Raises:
            ValueError: it does not fit the checkpoint.
            MediaError: a medium cannot be read.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TextRequest(Request):
    """What every request for text may say, beside what `Request` has.

    Args:
        stop: strings that end the answer; they are cut off.
    """

    default_temperature: ClassVar[float] = 0.0

    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        is_listed = isinstance(self.stop, list | tuple)
        if not is_listed or not all(isinstance(text, str) for text in self.stop):
            raise ValueError(wrong(type(self), "stop", self.stop, "a tuple of strings"))
