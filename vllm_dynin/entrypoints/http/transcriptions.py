"""`/v1/audio/transcriptions`."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, UploadFile
from fastapi import Request as HTTPRequest
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from openai.types.audio import Transcription, TranscriptionVerbose
from pydantic import Field, Json
from vllm.sampling_params import RequestOutputKind

from vllm_dynin.canvas import Task
from vllm_dynin.defaults import defaults_of
from vllm_dynin.entrypoints.http.events import first_of, sse
from vllm_dynin.entrypoints.http.fields import TRANSCRIPTIONS
from vllm_dynin.entrypoints.http.forms import FormRoute
from vllm_dynin.entrypoints.http.options import Body, Seed, Temperature, parse_options
from vllm_dynin.entrypoints.http.routing import cancellable, described
from vllm_dynin.entrypoints.http.segments import (
    MAX_SEGMENT_SECONDS,
    Segment,
    Transcribed,
    TranscriptFormat,
    cut,
    transcript,
)
from vllm_dynin.entrypoints.http.service import MediaService, Sent, service_of, together
from vllm_dynin.entrypoints.http.uploads import read_upload
from vllm_dynin.processors.codecs.audio_io import load_audio
from vllm_dynin.processors.codecs.limits import MediaError
from vllm_dynin.processors.media import AUDIO_RATE, speech_input
from vllm_dynin.requests import SpeechToText
from vllm_dynin.sampling.params import DenoiseParams

router = APIRouter(route_class=FormRoute)

_MEDIA_TYPES = {"srt": "application/x-subrip", "vtt": "text/vtt", "text": "text/plain"}
_PROMPT_ROOM = 64
"""Rows of a prompt beside its units."""


_ENGLISH = re.compile(
    r"(?:en|eng)(?:[-_][a-z0-9]+)*(?:\.[-a-z0-9]+)?|(?:\w+ )?english(?: \(.*\))?|auto",
    re.IGNORECASE,
)


def is_english(language: str) -> bool:
    """Whether a language is English or left to the model: by code, with or without a region."""
    return _ENGLISH.fullmatch(language.strip()) is not None


class TranscriptionForm(Body):
    """The form of `/v1/audio/transcriptions`."""

    rules = TRANSCRIPTIONS

    file: UploadFile = Field(description="The recording, in any format FFmpeg reads.")
    language: str | None = Field(
        None, description="en, with or without a region, or auto: the model transcribes English."
    )
    languages: list[str] = Field(
        default=[], alias="languages[]", description="Each as `language`: en."
    )
    response_format: TranscriptFormat = "json"
    temperature: Temperature = 0.0
    timestamp_granularities: list[Literal["segment", "word"]] = Field(
        default=[], alias="timestamp_granularities[]", description="segment, with verbose_json."
    )
    stream: bool = False
    seed: Seed | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Of each piece of 30 seconds."
    )
    instruction: str | None = Field(
        None, max_length=1_000, description="In place of the trained instruction."
    )
    vllm_xargs: Json[dict[str, Any]] | None = Field(None, description="As JSON.")

    def check(self) -> None:
        """Check what cannot be honoured.

        Raises:
            ValueError: something.
        """
        for language in (self.language or "auto", *self.languages):
            if not is_english(language):
                raise ValueError(
                    f"language={language[:20]!r}: the model transcribes English; use en, or leave "
                    "it out"
                )
        if "word" in self.timestamp_granularities:
            raise ValueError(
                "timestamp_granularities 'word': the model gives no times; segment has those of "
                "the pieces a recording is cut into"
            )
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise ValueError(
                f"timestamp_granularities with response_format={self.response_format!r}; use "
                "verbose_json"
            )
        if self.stream and self.response_format not in ("json", "text"):
            raise ValueError(
                f"stream=true with response_format={self.response_format!r}: events carry text; "
                "use json"
            )

    def request(self, segment: Segment, index: int, options: DenoiseParams) -> SpeechToText:
        """What is asked about a piece of the recording."""
        return SpeechToText(
            (segment.samples, AUDIO_RATE),
            self.instruction,
            options=options,
            max_tokens=self.max_completion_tokens,
            temperature=self.temperature if "temperature" in self.model_fields_set else None,
            seed=None if self.seed is None else (self.seed + index) % 2**63,
        )


@router.post(
    "/v1/audio/transcriptions",
    responses=described(
        Transcription | TranscriptionVerbose, (*_MEDIA_TYPES.values(), "text/event-stream")
    ),
)
@cancellable
async def create_transcription(
    request: Annotated[TranscriptionForm, Form(media_type="multipart/form-data")],
    raw_request: HTTPRequest,
) -> Response:
    """Write down what is said in a recording."""
    request.check()
    service = service_of(raw_request)
    service.model_name(request.model)
    options = parse_options(request.vllm_xargs)
    data = await read_upload(request.file)
    segments = await service.in_thread(_segments, data, service, request)
    if request.stream:
        events = sse(_events(request, segments, options, service, raw_request))
        return StreamingResponse(await first_of(events), media_type="text/event-stream")
    found = await together(
        [
            _transcribe(request, index, segment, options, service, raw_request)
            for index, segment in enumerate(segments)
        ]
    )
    answer = transcript(found, request.response_format, request.temperature)
    if isinstance(answer, dict):
        return JSONResponse(answer)
    return PlainTextResponse(answer, media_type=_MEDIA_TYPES[request.response_format])


def _segments(data: bytes, service: MediaService, form: TranscriptionForm) -> list[Segment]:
    """A recording in pieces that fit a prompt.

    Raises:
        MediaError: not audio, too short, or over a limit.
        ValueError: there is no speech codec.
    """
    takes = speech_input(service.checkpoint.speech_folder)
    samples = load_audio(data, target_rate=AUDIO_RATE)
    if len(samples) < takes.min_samples:
        raise MediaError(
            f"the recording has {1000 * len(samples) / AUDIO_RATE:.0f} ms; the model needs "
            f"{1000 * takes.min_samples / AUDIO_RATE:.0f} ms"
        )
    usual = defaults_of(Task.SPEECH_TO_TEXT, service.checkpoint.config).max_tokens
    num_tokens = form.max_completion_tokens or usual or 0
    room = service.vllm_config.model_config.max_model_len - num_tokens - _PROMPT_ROOM
    seconds = max(1.0, room * takes.samples_per_unit / AUDIO_RATE)
    segments = cut(samples, min(MAX_SEGMENT_SECONDS, seconds))
    # What is too short to be encoded is a remnant of the cut.
    return [segment for segment in segments if len(segment.samples) >= takes.min_samples]


async def _transcribe(
    form: TranscriptionForm,
    index: int,
    segment: Segment,
    options: DenoiseParams,
    service: MediaService,
    http: HTTPRequest,
) -> Transcribed:
    if segment.is_silent:
        return Transcribed(segment=segment, text="")
    sent = await service.prepare(form.request(segment, index, options), http, "trsc")
    if form.response_format == "verbose_json":
        sent.params.logprobs = 0
    output = (await service.finished(sent)).outputs[0]
    total = output.cumulative_logprob or 0.0
    return Transcribed(
        segment=segment,
        text=output.text.strip(),
        token_ids=tuple(output.token_ids),
        mean_logprob=total / max(1, len(output.token_ids)),
    )


async def _events(
    form: TranscriptionForm,
    segments: Sequence[Segment],
    options: DenoiseParams,
    service: MediaService,
    http: HTTPRequest,
) -> AsyncGenerator[dict[str, Any]]:
    """Pieces of text as they are decided, one block of the answer after the other."""
    whole = ""
    for index, segment in enumerate(segments):
        if segment.is_silent:
            continue
        sent = await service.prepare(form.request(segment, index, options), http, "trsc")
        gap = " " if whole else ""
        async with aclosing(_stripped_deltas(sent, service)) as deltas:
            async for text in deltas:
                whole += gap + text
                yield {"type": "transcript.text.delta", "delta": gap + text}
                gap = ""
    usage = {"type": "duration", "seconds": math.ceil(segments[-1].end)}
    yield {"type": "transcript.text.done", "text": whole, "usage": usage}


async def _stripped_deltas(sent: Sent, service: MediaService) -> AsyncGenerator[str]:
    """Pieces of an answer that add up to its text, stripped."""
    sent.params.output_kind = RequestOutputKind.DELTA
    held, has_begun = "", False
    async with aclosing(service.outputs(sent)) as outputs:
        async for output in outputs:
            held += output.outputs[0].text
            if not has_begun:
                held = held.lstrip()
            if ready := held.rstrip():
                yield ready
                held, has_begun = held[len(ready) :], True
