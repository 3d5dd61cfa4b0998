"""Requests that are answered in text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_dynin.processors import chat
from vllm_dynin.processors.codecs.audio_io import AudioSource
from vllm_dynin.processors.codecs.image_io import ImageSource
from vllm_dynin.processors.codecs.video import VideoSource
from vllm_dynin.processors.placeholders import STAND_IN, empty_media
from vllm_dynin.requests.base import Checkpoint, Prompt, TextRequest
from vllm_dynin.requests.checks import check_fields, wrong
from vllm_dynin.requests.media import (
    OPENERS,
    filled,
    given,
    listed,
    opened_audio,
    opened_image,
    opened_video,
)

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Chat(TextRequest):
    """A conversation, with or without media, that is answered in text.

    Args:
        messages: `{"role": …, "content": text or parts}`; a part is `{"type": "text", "text": …}`
            or `{"type": "image", "image": source}`, likewise `video` and `audio`.
        thinking: True asks for a thinking part (`Result.reasoning`), False for none, None says
            nothing.
        interleave_media: keep media of the first user message where they stand; by default they
            go to the front, as the model was trained.
    """

    messages: Sequence[Message]
    thinking: bool | None = field(default=None, kw_only=True)
    interleave_media: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.messages, list | tuple):
            raise ValueError(wrong(Chat, "messages", self.messages, "a list of messages"))
        for message in self.messages:
            content = message.get("content") if isinstance(message, Mapping) else None
            parts = [] if content is None or isinstance(content, str) else content
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                rule = "{'role': a string, 'content': a string or a list of parts}"
                raise ValueError(wrong(Chat, "message", message, rule))
            if not isinstance(parts, list | tuple) or not all(map(_is_part, parts)):
                rule = "a string, or a list of parts {'type': 'text', 'text': …}"
                raise ValueError(wrong(Chat, "content", content, rule))

    def prompt(self, checkpoint: Checkpoint) -> Prompt:
        """The rendered conversation and its media."""
        text = chat.render_chat(
            self.messages,
            enable_thinking=self.thinking,
            interleave_media=self.interleave_media,
        )
        media: dict[str, list[Any]] = {}
        for message in self.messages:
            content = message.get("content")
            for part in content if isinstance(content, list | tuple) else ():
                kind = part.get("type")
                if kind in OPENERS:
                    if kind not in part:
                        raise ValueError(
                            f"a part of type {kind!r} has keys {sorted(part)}; give its source as "
                            f"{{'type': {kind!r}, {kind!r}: source}}"
                        )
                    media.setdefault(kind, []).append(OPENERS[kind](part[kind], checkpoint))
        return Prompt(
            token_ids=checkpoint.assembler.encode(text), options=self.options, media=media
        )


def _is_part(part: Any) -> bool:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        return False
    return "text" not in part["type"] or isinstance(part.get("text"), str)


@dataclass(frozen=True)
class TextToText(TextRequest):
    """A question that is answered in text.

    Args:
        prompt_text: the question.
        system: system prompt, or None.
        thinking: as for `Chat`.
    """

    prompt_text: str
    system: str | None = field(default=None, kw_only=True)
    thinking: bool | None = field(default=None, kw_only=True)

    def prompt(self, checkpoint: Checkpoint) -> Prompt:
        """One user turn."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, {"role": "user", "content": self.prompt_text}]
        text = chat.render_chat(messages, enable_thinking=self.thinking)
        return Prompt(token_ids=checkpoint.assembler.encode(text), options=self.options)


@dataclass(frozen=True)
class Gap:
    """Tokens to fill in, for `FillText`.

    Args:
        num_tokens: how many, at least 1.

    Raises:
        ValueError: fewer.
    """

    num_tokens: int

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_tokens < 1:
            raise ValueError(f"Gap({self.num_tokens}): a gap has at least one token")


@dataclass(frozen=True)
class FillText(TextRequest):
    """An answer of which parts are known, and the gaps between them are filled in.

    Args:
        prompt_text: the question the answer belongs to.
        answer: known text and gaps, in order, e.g. `("The capital is ", Gap(4), ", of course.")`.
    """

    prompt_text: str
    answer: Sequence[str | Gap]

    def __post_init__(self) -> None:
        super().__post_init__()
        is_listed = isinstance(self.answer, list | tuple)
        if not is_listed or not all(isinstance(part, str | Gap) for part in self.answer):
            raise ValueError(wrong(FillText, "answer", self.answer, "a tuple of strings and Gaps"))

    def prompt(self, checkpoint: Checkpoint) -> Prompt:
        """One user turn, with the known text pinned."""
        assembler = checkpoint.assembler
        targets: list[int] = []
        for part in self.answer:
            if isinstance(part, Gap):
                targets += [assembler.vocabulary.mask] * part.num_tokens
            else:
                targets += assembler.encode(part)
        text = chat.render_chat([{"role": "user", "content": self.prompt_text}])
        return Prompt(
            token_ids=assembler.encode(text), options=filled(self.options, tuple(targets))
        )


@dataclass(frozen=True)
class ImageToText(TextRequest):
    """A question about one image or several.

    Args:
        image: one image, or a list of them.
        question: about it.
        resolution: pixels a side it is looked at with; None is the checkpoint's default.
        thinking: as for `Chat`.
    """

    image: ImageSource | Sequence[ImageSource]
    question: str = chat.DEFAULT_QUESTION
    resolution: int | None = field(default=None, kw_only=True)
    thinking: bool | None = field(default=None, kw_only=True)

    def prompt(self, checkpoint: Checkpoint) -> Prompt:
        """Images in front, then one user turn."""
        images = [opened_image(image, checkpoint) for image in listed(self.image)]
        parts = [{"type": "image"}] * len(images) + [{"type": "text", "text": self.question}]
        text = chat.render_chat([{"role": "user", "content": parts}], enable_thinking=self.thinking)
        return Prompt(
            token_ids=checkpoint.assembler.encode(text),
            options=self.options,
            media={"image": images},
            media_options=given(resolution=self.resolution),
        )


@dataclass(frozen=True)
class VideoToText(TextRequest):
    """A question about a video.

    Args:
        video: a file, or the frames.
        question: about it.
        num_frames: frames that are looked at, evenly spaced; None is the checkpoint's default.
        resolution: pixels a side of a frame; None is the checkpoint's default.
        thinking: as for `Chat`.
    """

    video: VideoSource
    question: str = chat.DEFAULT_QUESTION
    num_frames: int | None = field(default=None, kw_only=True)
    resolution: int | None = field(default=None, kw_only=True)
    thinking: bool | None = field(default=None, kw_only=True)

    def prompt(self, checkpoint: Checkpoint) -> Prompt:
        """The video in front, then one user turn."""
        parts = [{"type": "video"}, {"type": "text", "text": self.question}]
        text = chat.render_chat([{"role": "user", "content": parts}], enable_thinking=self.thinking)
        frames = opened_video(self.video, checkpoint, self.num_frames, self.resolution)
        return Prompt(
            token_ids=checkpoint.assembler.encode(text),
            options=self.options,
            media={"video": [frames]},
            media_options=given(resolution=self.resolution, num_frames=self.num_frames),
        )


@dataclass(frozen=True)
class SpeechToText(TextRequest):
    """A transcription.

    Args:
        recording: a file, or `(samples, sample_rate)`.
        instruction: None is the first of those the model was trained with.
    """

    recording: AudioSource
    instruction: str | None = None

    def prompt(self, checkpoint: Checkpoint) -> Prompt:
        """The recording, then the instruction."""
        audio = opened_audio(self.recording, checkpoint)
        head = checkpoint.assembler.speech_to_text(STAND_IN, self.instruction)
        return Prompt(
            token_ids=empty_media(head, checkpoint.config.vocabulary),
            options=self.options,
            media={"audio": [audio]},
        )
