"""Chat answers with media: in the shape of OpenAI's API, or in that of vllm-omni 0.28.

| | `openai` | `omni` |
|---|---|---|
| image | `message.images`: parts of type `image_url` | the same parts as `message.content` |
| speech | `message.audio`: id, data, transcript | the same; streamed, the data as `delta.content` |
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from PIL import Image
from vllm.exceptions import VLLMUnprocessableEntityError

from vllm_dynin.canvas import Task
from vllm_dynin.codec_runner import Sound
from vllm_dynin.entrypoints.http.image_files import encoded
from vllm_dynin.entrypoints.http.service import Answer
from vllm_dynin.entrypoints.http.sound_files import whole_file
from vllm_dynin.processors.templates import DIRECTIONS
from vllm_dynin.report import REPORT
from vllm_dynin.tokens import Modality

__all__ = ["REPORT", "Head", "completion", "deltas", "finish_reason", "image_part", "usage"]

Shape = Literal["openai", "omni"]
ChatSoundFormat = Literal["wav", "mp3", "flac", "opus", "aac", "pcm", "pcm16"]

_KEPT_SECONDS = 0
"""How long sound can be asked for by its id: it cannot."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What is the same in all of a request's answers and chunks.

    Args:
        id: of the answer.
        model: name it is given under.
        created: Unix time.
        shape: of the answer.
        task: the direction.
        transcript: of speech, where it is known: what was to be read aloud.
        sound_format: of speech.
        wants_report: whether the answer holds an account of its work.
    """

    id: str
    model: str
    created: int
    shape: Shape
    task: Task
    transcript: str
    sound_format: ChatSoundFormat
    wants_report: bool

    def chunk(
        self, delta: dict[str, Any] | None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        """One chunk of a stream; without a delta it has no choice."""
        choices = []
        if delta is not None:
            choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
        chunk = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        if self.shape == "omni":
            is_speech = DIRECTIONS[self.task].output is Modality.SPEECH
            chunk["modality"] = "audio" if is_speech else "image"
        return chunk


def image_part(image: Image.Image) -> dict[str, Any]:
    """An image as a part of a message."""
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{encoded(image, 'png')}"},
    }


def audio_object(sound: Sound, head: Head) -> dict[str, Any]:
    """Speech as `message.audio`.

    Raises:
        VLLMUnprocessableEntityError: the model has said nothing.
    """
    if not len(sound.waveform):
        raise VLLMUnprocessableEntityError(
            "the model answered without a single unit of speech; try another seed or text"
        )
    name = "pcm" if head.sound_format == "pcm16" else head.sound_format
    data = whole_file(sound, name)
    return {
        "id": f"audio-{head.id.removeprefix('chatcmpl-')}",
        "data": base64.b64encode(data).decode("ascii"),
        "expires_at": int(time.time()) + _KEPT_SECONDS,
        "transcript": head.transcript,
    }


def message(head: Head, answer: Answer) -> dict[str, Any]:
    """The message of an answer."""
    result = answer.result
    found: dict[str, Any] = {"role": "assistant", "content": result.text}
    if result.image is not None:
        part = image_part(result.image)
        found["images"] = [part | {"index": 0}]
        if head.shape == "omni":
            text = [{"type": "text", "text": result.text}] if result.text is not None else []
            found["content"] = [part, *text]
    if result.audio is not None:
        found["audio"] = audio_object(result.audio, head)
    return found


def deltas(head: Head, answer: Answer) -> list[dict[str, Any]]:
    """The message of an answer as the deltas of a stream."""
    whole = message(head, answer)
    if head.shape == "omni":
        content = whole["audio"]["data"] if "audio" in whole else whole["content"]
        return [{"content": content}]
    found: list[dict[str, Any]] = []
    if "images" in whole:
        found.append({"images": whole["images"]})
    if "audio" in whole:
        found.append({"audio": whole["audio"]})
    if whole["content"]:
        found.append({"content": whole["content"]})
    return found


def finish_reason(answer: Answer) -> str | None:
    """Why an answer ends: an image always at its end, speech as the engine says."""
    return "stop" if answer.result.image is not None else answer.result.finish_reason


def usage(answers: Sequence[Answer]) -> dict[str, int]:
    """Tokens of answers to one prompt."""
    sent = len(answers[0].prompt_token_ids)
    made = sum(len(answer.result.token_ids) for answer in answers)
    return {"prompt_tokens": sent, "completion_tokens": made, "total_tokens": sent + made}


def completion(head: Head, answers: Sequence[Answer]) -> dict[str, Any]:
    """A whole chat completion."""
    choices = [
        {
            "index": index,
            "message": message(head, answer),
            "logprobs": None,
            "finish_reason": finish_reason(answer),
        }
        for index, answer in enumerate(answers)
    ]
    whole = {
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": choices,
        "usage": usage(answers),
    }
    if head.wants_report:
        whole[REPORT] = [msgspec.to_builtins(answer.result.report) for answer in answers]
    return whole
