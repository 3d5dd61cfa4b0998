"""`/v1/chat/completions` with `modalities`: answers that are images or speech.

A conversation that is answered in text goes to vLLM's own handler, unchanged but for options that
came in vllm-omni's way (`migration.py`).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends
from fastapi import Request as HTTPRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
)
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.entrypoints.http import chat_answers, partials
from vllm_dynin.entrypoints.http.chat_answers import ChatSoundFormat, Shape
from vllm_dynin.entrypoints.http.events import DONE, first_of, sse
from vllm_dynin.entrypoints.http.fields import CHAT_MEDIA, CHAT_MEDIA_GREEDY, CHAT_TEXT
from vllm_dynin.entrypoints.http.messages import (
    Turn,
    build_request,
    check_parts,
    direction_of,
    last_turn,
)
from vllm_dynin.entrypoints.http.migration import Information, read_information, triggered
from vllm_dynin.entrypoints.http.options import (
    Said,
    noted,
    parse_options,
    quality_steps,
    size_options,
)
from vllm_dynin.entrypoints.http.options import one_of as one
from vllm_dynin.entrypoints.http.routing import cancellable, described, in_time
from vllm_dynin.entrypoints.http.service import MediaService, Sent, service_of, together
from vllm_dynin.entrypoints.http.voices import VoiceId, name_of, style_of
from vllm_dynin.processors.templates import DIRECTIONS
from vllm_dynin.requests import Request
from vllm_dynin.sampling.params import MAX_STEPS, DenoiseParams
from vllm_dynin.tokens import Modality

router = APIRouter()

MAX_ANSWERS = 10
"""`n` of a request for media."""


class AudioChoice(BaseModel):
    """How a spoken answer sounds, as in OpenAI's API."""

    model_config = ConfigDict(extra="forbid")

    voice: str | VoiceId = "female"
    format: ChatSoundFormat = "wav"


class ChatBody(Said, ChatCompletionRequest):
    """vLLM's chat request, and what an answer in media is to be."""

    modalities: list[Literal["text", "image", "audio"]] | None = Field(
        None, description="What the answer holds; text by default."
    )
    audio: AudioChoice | None = Field(None, description="Goes with audio in modalities.")
    additional_information: dict[str, Any] | None = Field(
        None, description="Options in vllm-omni's way; scalars only."
    )
    size: str | None = Field(None, description="Of an image, WIDTHxHEIGHT in pixels.")
    quality: str | None = Field(None, description="Of an image: low, medium or high.")
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance_scale: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = Field(
        None, description="Unfinished images to stream."
    )

    @classmethod
    def prepared(cls, said: dict[str, Any]) -> dict[str, Any]:
        """Without what asks for nothing, and what vLLM refuses all the same."""
        if not said.get("tools", True):
            del said["tools"]
        if "tools" not in said and said.get("tool_choice") in ("none", "auto"):
            del said["tool_choice"]
        if not said.get("stream"):
            said.pop("stream_options", None)
        check_parts(said.get("messages"))
        return said


_IMAGE_FIELDS = ("size", "quality", "partial_images")
_MEDIA_FIELDS = (*_IMAGE_FIELDS, "num_inference_steps", "guidance_scale")
_SAYS_NOTHING = (None, "auto", 0)
_OURS = frozenset({"additional_information", "vllm_xargs", *_MEDIA_FIELDS})
"""Fields beside OpenAI's that mean something for an answer in media."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a chat request for media asks for.

    Args:
        task: the direction.
        turn: the message it is made from.
        shape: of the answer.
        information: what came in vllm-omni's way.
    """

    task: Task
    turn: Turn
    shape: Shape
    information: Information


@router.post(
    "/v1/chat/completions",
    dependencies=[Depends(validate_json_request)],
    responses=described(ChatCompletionResponse, ("text/event-stream",)),
)
async def create_chat(request: ChatBody, raw_request: HTTPRequest) -> Response:
    """Answer a conversation in text, with images or in speech."""
    service: MediaService | None = getattr(raw_request.app.state, "dynin", None)
    wanted = None if service is None else _wanted(request, service)
    if wanted is None:
        answer = await create_chat_completion(request, raw_request)
        return noted(await in_time(answer, raw_request), request)
    return await _answer_in_media(request=request, wanted=wanted, raw_request=raw_request)


def _wanted(body: ChatBody, service: MediaService) -> Wanted | None:
    """What is asked for; None for text, which is vLLM's.

    Raises:
        ValueError: what is said contradicts itself, or there is no such direction.
    """
    modalities = frozenset(body.modalities or ())
    for message in body.messages:
        if not isinstance(message, Mapping):  # vLLM reads odd ones as Harmony's, for its own models
            raise ValueError(
                "a message is not of the form this model takes; write role (a string) and content "
                "(a string, or a list of parts)"
            )
    text = _text_of_last(body.messages)
    task, rest = triggered(text)
    information = Information()
    if body.additional_information:
        config = service.checkpoint.media_config
        information = read_information(body.additional_information, config)
    is_omni = task is not None or body.additional_information is not None
    task = information.task or task
    wants_media = bool(modalities - {"text"})
    if task is Task.TEXT_TO_TEXT or (task is None and not wants_media):
        if wants_media:
            raise ValueError(
                f"modalities={sorted(modalities)} with task 't2t', which makes text; say one thing"
            )
        if body.audio is not None:
            raise ValueError("audio goes with audio in modalities; leave it out, or ask for audio")
        _refuse_set(body, _IMAGE_FIELDS, "is for images; leave it out, or add image to modalities")
        _refuse_set(
            body, _MEDIA_FIELDS, "is for answers in media; leave it out, or see vllm_xargs for text"
        )
        body.follow(CHAT_TEXT)
        _apply(information, body)
        return None
    turn = last_turn(body.messages, is_lenient=is_omni)
    if is_omni and text:
        turn.text = rest
    if task is None:
        task = direction_of(turn, modalities)
    elif modalities and _name(task) not in modalities:
        raise ValueError(
            f"modalities={sorted(modalities)}, but the message asks for {task.value}, which makes "
            f"{_name(task)}; add it to modalities"
        )
    _refuse_unused(body, task)
    shape: Shape = "omni" if is_omni else "openai"
    return Wanted(task=task, turn=turn, shape=shape, information=information)


def _name(task: Task) -> str:
    """What a direction makes, as `modalities` has it."""
    return "audio" if DIRECTIONS[task].output is Modality.SPEECH else "image"


def _text_of_last(messages: Sequence[Any]) -> str:
    """Text of the last message, where it is the user's."""
    last = messages[-1] if messages else {}
    if last.get("role") != "user":
        return ""
    content = last.get("content")
    if isinstance(content, str):
        return content
    texts = [
        part if isinstance(part, str) else part.get("text")
        for part in content or ()
        if isinstance(part, str | dict)
    ]
    return "\n".join(str(text) for text in texts if text is not None)


def _apply(information: Information, body: ChatBody) -> None:
    """Put what came in vllm-omni's way where vLLM's own handler looks for it, in place."""
    if information.options:
        given = body.vllm_xargs or {}
        options = parse_options(given, **information.options)
        body.vllm_xargs = {**given, **options.to_extra_args()}
    if information.max_tokens is not None:
        stated = one(max_completion_tokens=body.max_completion_tokens, max_tokens=body.max_tokens)
        body.max_completion_tokens = one(stated=stated, max_new_tokens=information.max_tokens)
    body.temperature = one(temperature=body.temperature, additional=information.temperature)
    body.seed = one(seed=body.seed, additional=information.seed)


def _refuse_unused(body: ChatBody, task: Task) -> None:
    """Refuse what an answer in media would ignore.

    Raises:
        ValueError: something would be.
    """
    rules = CHAT_MEDIA_GREEDY if body.temperature == 0 else CHAT_MEDIA
    body.follow(rules)
    extra = set(body.model_extra or ())
    for name in sorted((body.model_fields_set | extra) - _OURS - rules.keys()):
        field = type(body).model_fields.get(name)
        default = None if field is None else field.get_default(call_default_factory=True)
        value = getattr(body, name)
        if value is not None and value != default:
            raise ValueError(
                f"{name}={repr(value)[:60]} means nothing for an answer with {_name(task)}; "
                "leave it out"
            )
    if _name(task) != "audio" and body.audio is not None:
        raise ValueError("audio goes with audio in modalities; leave it out")
    if _name(task) != "image":
        _refuse_set(body, _IMAGE_FIELDS, "is for images; leave it out")
    num_answers = body.n or 1
    if not 1 <= num_answers <= MAX_ANSWERS:
        raise ValueError(f"n={num_answers}: 1 to {MAX_ANSWERS} answers with media at a time")
    if body.stream and num_answers > 1:
        raise ValueError(f"n={num_answers} with stream=true: a stream carries one answer; use n=1")
    if body.partial_images and not body.stream:
        raise ValueError(
            f"partial_images={body.partial_images} come while streaming; set stream=true"
        )


def _refuse_set(body: ChatBody, names: Sequence[str], why: str) -> None:
    for name in names:
        if (value := getattr(body, name)) not in _SAYS_NOTHING:
            raise ValueError(f"{name}={value!r} {why}")


def _options(body: ChatBody, wanted: Wanted, config: LLaDAConfig) -> DenoiseParams:
    task, given = wanted.task, dict(wanted.information.options)
    quality = None if body.quality is None else quality_steps(body.quality, task, config)
    given["steps"] = one(
        quality=quality,
        num_inference_steps=body.num_inference_steps,
        additional_information=given.get("steps"),
    )
    scale = one(guidance_scale=body.guidance_scale, additional=given.pop("guidance_scale", None))
    if _name(task) == "audio":
        voice = (
            None
            if body.audio is None or "voice" not in body.audio.model_fields_set
            else (style_of(name_of(body.audio.voice)))
        )
        given["style"] = one(voice=voice, additional_information=given.get("style"))
    return parse_options(body.vllm_xargs, **given, guidance_scale=scale, **size_options(body.size))


@cancellable
async def _answer_in_media(request: ChatBody, wanted: Wanted, raw_request: HTTPRequest) -> Response:
    service = service_of(raw_request)
    model = service.model_name(request.model)
    options = _options(request, wanted, service.checkpoint.config)
    seed = one(seed=request.seed, additional_information=wanted.information.seed)

    async def sent(index: int) -> Sent:
        asked = await _request(request, wanted, options, seed, index, service)
        return await service.prepare(asked, raw_request, "chatcmpl")

    head = chat_answers.Head(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        model=model,
        created=int(time.time()),
        shape=wanted.shape,
        task=wanted.task,
        transcript=wanted.turn.text if wanted.task is Task.TEXT_TO_SPEECH else "",
        sound_format=request.audio.format if request.audio else "wav",
        wants_report=bool(options.report),
    )
    if request.stream:
        chunks = _chunks(request, head, await sent(0), service)
        lines = await first_of(sse(chunks, last=DONE))
        return StreamingResponse(lines, media_type="text/event-stream")

    async def answer(index: int) -> Any:
        return await service.answer(await sent(index))

    answers = await together([answer(index) for index in range(request.n or 1)])
    return JSONResponse(await service.in_thread(chat_answers.completion, head, answers))


async def _request(
    body: ChatBody,
    wanted: Wanted,
    options: DenoiseParams,
    seed: int | None,
    index: int,
    service: MediaService,
) -> Request:
    information = wanted.information
    max_tokens = one(
        max_completion_tokens=body.max_completion_tokens,
        max_tokens=body.max_tokens,
        max_new_tokens=information.max_tokens,
    )
    if wanted.task is Task.TEXT_IMAGE_TO_TEXT_IMAGE and max_tokens is not None:
        # The length of an image is its size; that of the text behind it is an option.
        options = parse_options(options.to_extra_args(), text_tokens=max_tokens)
        max_tokens = None
    return await build_request(
        wanted.turn,
        wanted.task,
        service.vllm_config.model_config,
        instruction=information.instruction,
        options=options,
        seed=None if seed is None else (seed + index) % 2**63,
        temperature=one(
            temperature=body.temperature, additional_information=information.temperature
        ),
        max_tokens=max_tokens if _name(wanted.task) == "audio" else None,
        trajectory=bool(body.stream) and _name(wanted.task) == "image",
    )


async def _chunks(
    body: ChatBody, head: chat_answers.Head, sent: Sent, service: MediaService
) -> AsyncGenerator[dict[str, Any]]:
    """The chunks of a streamed answer."""
    started = False
    if _name(head.task) == "image":
        events = partials.image_events(service, sent, body.partial_images or 0)
        async for index, image, answer in events:
            if not started:
                yield head.chunk({"role": "assistant", "content": ""})
                started = True
            if answer is None:
                part = await service.in_thread(chat_answers.image_part, image)
                part |= {"index": index, "is_partial": True}
                yield head.chunk({"images": [part]})
                continue
            last = answer
    else:
        last = await service.answer(sent)
        yield head.chunk({"role": "assistant", "content": ""})
    for delta in await service.in_thread(chat_answers.deltas, head, last):
        yield head.chunk(delta)
    ending = head.chunk({}, finish_reason=chat_answers.finish_reason(last))
    if head.wants_report:
        ending[chat_answers.REPORT] = msgspec.to_builtins(last.result.report)
    yield ending
    if body.stream_options is not None and body.stream_options.include_usage:
        yield head.chunk(None) | {"usage": chat_answers.usage([last])}
