"""From a conversation to a request that is answered with an image or in speech."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm.config import ModelConfig

from vllm_dynin.canvas import Task
from vllm_dynin.entrypoints.http.fetching import fetch, fetch_video, input_audio
from vllm_dynin.processors.chat import DEFAULT_QUESTION
from vllm_dynin.requests import (
    EditImage,
    MixedAnswer,
    Request,
    SpeechToSpeech,
    TextToImage,
    TextToSpeech,
    VideoToSpeech,
)

_TEXTS = ("text", "input_text")
_KINDS = {
    "image_url": "image",
    "input_image": "image",
    "video_url": "video",
    "audio_url": "audio",
    "input_audio": "audio",
}


def check_parts(messages: Any) -> None:
    """Check that each medium of a conversation has a source that can be one.

    Args:
        messages: as they came.

    Raises:
        ValueError: a part is neither text nor an object, or its source is none.
    """
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, str):
                continue
            if not isinstance(part, Mapping):
                raise ValueError(
                    f"{repr(part)[:40]} is no part of a message; a part is an object with a type, "
                    "or a string"
                )
            _check_source(part)


def _check_source(part: Mapping[str, Any]) -> None:
    for name in _KINDS:
        source = part.get(name)
        if source is None:
            continue
        key = "data" if name == "input_audio" else "url"
        url = source.get(key, "") if isinstance(source, Mapping) else source
        if not isinstance(url, str) or (name == "input_audio" and source is url):
            raise ValueError(
                f"{name}={repr(source)[:60]}: write {{{key!r}: …}} with a string, "
                + ("the file in base64" if key == "data" else "an http, https or data URL")
            )


@dataclass(kw_only=True)
class Turn:
    """The message a request is made from.

    Args:
        text: its text parts, joined.
        media: URLs or `input_audio` objects of its other parts, by kind.
    """

    text: str = ""
    media: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def kinds(self) -> frozenset[str]:
        """What media there are."""
        return frozenset(self.media)


def last_turn(messages: Sequence[Mapping[str, Any]], *, is_lenient: bool = False) -> Turn:
    """The one message that says what to make.

    Args:
        messages: of the conversation.
        is_lenient: earlier messages are passed over, as they were in vllm-omni; otherwise there
            may be none, because these directions have no place for them.

    Raises:
        ValueError: it is not the user's, has parts of an unknown kind, or is not the only one.
    """
    *earlier, last = messages or [{}]
    if last.get("role") != "user":
        raise ValueError(
            f"the last message is of role {last.get('role')!r}; an image or speech is made from "
            "the user's"
        )
    if earlier and not is_lenient:
        raise ValueError(
            f"{len(earlier)} messages stand before the user's last one, but an image or speech is "
            "made from one message; leave the others out"
        )
    content = last.get("content")
    if isinstance(content, str):
        return Turn(text=content)
    turn, texts = Turn(), []
    for part in content or ():
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type")
        if kind in _TEXTS:
            texts.append(str(part.get("text", "")))
        elif kind in _KINDS:
            source = part.get(kind) if kind != "input_image" else part.get("image_url")
            turn.media.setdefault(_KINDS[kind], []).append(source)
        else:
            raise ValueError(
                f"a part of type {str(kind)[:40]!r}: use one of {', '.join((*_TEXTS, *_KINDS))}"
            )
    turn.text = "\n".join(texts)
    return turn


def direction_of(turn: Turn, modalities: frozenset[str]) -> Task:
    """The direction of a message, from its media and what is wanted.

    Args:
        turn: the message.
        modalities: `image` or `audio` among them.

    Raises:
        ValueError: there is no such direction.
    """
    kinds = turn.kinds
    if {"image", "audio"} <= modalities:
        raise ValueError(
            "modalities has image and audio: the model answers with one of them; send two requests"
        )
    if "image" in modalities and not kinds - {"image"}:
        if not kinds:
            return Task.TEXT_TO_IMAGE
        is_mixed = "text" in modalities
        return Task.TEXT_IMAGE_TO_TEXT_IMAGE if is_mixed else Task.IMAGE_TO_IMAGE
    if "audio" in modalities:
        if not kinds:
            return Task.TEXT_TO_SPEECH
        if kinds == {"video"}:
            return Task.VIDEO_TO_SPEECH
        if "audio" in kinds and kinds <= {"audio", "image"}:
            return Task.SPEECH_TO_SPEECH
    wanted = "image" if "image" in modalities else "audio"
    raise ValueError(
        f"the model has no direction from {' and '.join(sorted(kinds))} to {wanted}; images come "
        "from text, with or without images; speech from text, from speech with or without images, "
        "or from a video and text"
    )


async def build_request(
    turn: Turn,
    task: Task,
    config: ModelConfig,
    *,
    instruction: str | None = None,
    **common: Any,
) -> Request:
    """The request of a message; its media are fetched.

    Args:
        turn: the message.
        task: its direction, with what that needs in the message.
        config: of the server, for the rules about URLs.
        instruction: of text to speech.
        common: fields of `Request`.

    Raises:
        ValueError: the message has not what the direction needs.
    """
    _check_media(turn, task)
    media = {
        kind: [await _fetched(kind, source, config) for source in sources]
        for kind, sources in turn.media.items()
    }
    if task is Task.TEXT_TO_IMAGE:
        return TextToImage(turn.text, **common)
    if task is Task.IMAGE_TO_IMAGE:
        return EditImage(media["image"], turn.text, **common)
    if task is Task.TEXT_IMAGE_TO_TEXT_IMAGE:
        return MixedAnswer(media["image"], turn.text, **common)
    if task is Task.SPEECH_TO_SPEECH:
        return SpeechToSpeech(media["audio"][0], media.get("image", ()), **common)
    if task is Task.VIDEO_TO_SPEECH:
        question = turn.text if turn.text.strip() else DEFAULT_QUESTION
        return VideoToSpeech(media["video"][0], question, **common)
    return TextToSpeech(turn.text, instruction, **common)


# Direction → the media it takes: fewest and most of each kind.
_TAKES: dict[Task, dict[str, tuple[int, int]]] = {
    Task.TEXT_TO_IMAGE: {},
    Task.TEXT_TO_SPEECH: {},
    Task.IMAGE_TO_IMAGE: {"image": (1, 16)},
    Task.TEXT_IMAGE_TO_TEXT_IMAGE: {"image": (1, 16)},
    Task.SPEECH_TO_SPEECH: {"audio": (1, 1), "image": (0, 16)},
    Task.VIDEO_TO_SPEECH: {"video": (1, 1)},
}


def _check_media(turn: Turn, task: Task) -> None:
    takes = _TAKES[task]
    for kind in sorted(turn.kinds | takes.keys()):
        fewest, most = takes.get(kind, (0, 0))
        count = len(turn.media.get(kind, ()))
        if not fewest <= count <= most:
            raise ValueError(
                f"the message has {count} {kind} parts; {task.value} takes "
                f"{most if fewest == most else f'{fewest} to {most}'}"
            )
    if task is Task.SPEECH_TO_SPEECH and turn.text.strip():
        raise ValueError(
            "the message has text beside the recording; a spoken question is answered as it is, "
            "so leave the text out"
        )


async def _fetched(kind: str, source: Any, config: ModelConfig) -> Any:
    if isinstance(source, Mapping):
        if "data" in source:  # input_audio
            return await input_audio(source)
        source = source.get("url")
    return await (fetch_video if kind == "video" else fetch)(source, config)
