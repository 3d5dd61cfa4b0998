"""`/v1/audio/speech` and the voices it knows."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Iterator
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter
from fastapi import Request as HTTPRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import Field
from vllm.exceptions import VLLMUnprocessableEntityError
from vllm.outputs import RequestOutput

from vllm_dynin.entrypoints.http.events import first_of, sse
from vllm_dynin.entrypoints.http.fields import SPEECH
from vllm_dynin.entrypoints.http.options import Body, Scale, Seed, Temperature, parse_options
from vllm_dynin.entrypoints.http.routing import cancellable, described
from vllm_dynin.entrypoints.http.service import MediaService, Sent, service_of
from vllm_dynin.entrypoints.http.sound_files import (
    MEDIA_TYPES,
    SoundFormat,
    output_rate,
    streamed_file,
    whole_file,
)
from vllm_dynin.entrypoints.http.voices import VOICES, VoiceId, name_of, style_of
from vllm_dynin.entrypoints.metrics import time_decoding
from vllm_dynin.outputs import SpeechPiece
from vllm_dynin.requests import TextToSpeech
from vllm_dynin.sampling.params import MAX_STEPS

router = APIRouter()


class SpeechBody(Body):
    """The body of `/v1/audio/speech`."""

    rules = SPEECH

    input: str = Field(min_length=1, max_length=32_000, description="What to say.")
    voice: str | VoiceId = Field("female", description="A name of /v1/audio/voices.")
    instructions: str | None = Field(
        None,
        max_length=4_096,
        description="Stands in front of the text in place of what the model was trained with.",
    )
    response_format: SoundFormat = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4.0)] = 1.0
    stream_format: Literal["audio", "sse"] | None = Field(
        None, description="Send the sound while it is decoded: as it is, or in events."
    )
    stream: bool = Field(False, description="The same as stream_format: sse.")
    seed: Seed | None = None
    temperature: Temperature | None = Field(None, description="1 by default; 0 is greedy.")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Speech units.")
    guidance_scale: Scale | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None

    @property
    def streamed_as(self) -> Literal["audio", "sse"] | None:
        """How the sound is streamed; None sends the whole file."""
        return self.stream_format or ("sse" if self.stream else None)

    def request(self) -> TextToSpeech:
        """What is asked.

        Raises:
            ValueError: no such voice, or an option that cannot be honoured.
        """
        options = parse_options(
            self.vllm_xargs,
            style=style_of(name_of(self.voice)) if "voice" in self.model_fields_set else None,
            guidance_scale=self.guidance_scale,
            steps=self.num_inference_steps,
        )
        return TextToSpeech(
            self.input,
            self.instructions,
            options=options,
            max_tokens=self.max_tokens,
            seed=self.seed,
            temperature=self.temperature,
        )


@router.post(
    "/v1/audio/speech",
    response_class=Response,
    responses=described(media_types=(*MEDIA_TYPES.values(), "text/event-stream")),
)
@cancellable
async def create_speech(request: SpeechBody, raw_request: HTTPRequest) -> Response:
    """Read a text aloud."""
    service = service_of(raw_request)
    service.model_name(request.model)
    sent = await service.prepare(request.request(), raw_request, "speech")
    output = await service.finished(sent)
    piece = spoken(service, sent, output)
    codecs = service.checkpoint.codecs
    voice: dict[str, Any] = {"style": piece.style, "seed": piece.seed, "speed": request.speed}
    rate = await service.in_thread(codecs.speech_rate)
    headers = {"X-Sample-Rate": str(output_rate(request.response_format, rate))}
    if request.streamed_as is None:
        decode = partial(codecs.decode_speech, piece.units, **voice)
        sound = await service.in_thread(lambda: time_decoding("speech", decode).result())
        data = await service.in_thread(whole_file, sound, request.response_format)
        return Response(data, media_type=MEDIA_TYPES[request.response_format], headers=headers)
    pieces = codecs.speech_pieces(piece.units, **voice)
    files = in_turn(service, streamed_file(pieces, request.response_format, rate))
    if request.streamed_as == "audio":
        media_type = MEDIA_TYPES[request.response_format]
        return StreamingResponse(await first_of(files), media_type=media_type, headers=headers)
    events = sse(_events(files, output))
    return StreamingResponse(
        await first_of(events), media_type="text/event-stream", headers=headers
    )


@router.get("/v1/audio/voices", responses=described())
async def list_voices(raw_request: HTTPRequest) -> JSONResponse:
    """Names of voices, and the styles of the speech codec, which are voices too."""
    service = service_of(raw_request)
    _ = service.checkpoint.speech_folder  # refuses a checkpoint without speech
    styles = await service.in_thread(service.checkpoint.codecs.speech_styles)
    return JSONResponse({"voices": list(VOICES), "styles": styles})


def spoken(service: MediaService, sent: Sent, output: RequestOutput) -> SpeechPiece:
    """The speech of an answer.

    Raises:
        VLLMUnprocessableEntityError: the model has said nothing.
    """
    (piece,) = service.pieces(sent, output)
    assert isinstance(piece, SpeechPiece)
    if not piece.units:
        raise VLLMUnprocessableEntityError(
            "the model answered without a single unit of speech; try another seed or text"
        )
    return piece


async def in_turn(service: MediaService, items: Iterator[bytes]) -> AsyncGenerator[bytes]:
    """Items that each take their time to make, made in a thread when they are asked for."""
    while (item := await service.in_thread(next, items, None)) is not None:
        yield item


async def _events(
    files: AsyncGenerator[bytes], output: RequestOutput
) -> AsyncGenerator[dict[str, Any]]:
    async for data in files:
        yield {"type": "speech.audio.delta", "audio": base64.b64encode(data).decode("ascii")}
    num_sent = len(output.prompt_token_ids or ())
    num_made = len(output.outputs[0].token_ids)
    usage = SpeechUsage(num_sent, num_made, num_sent + num_made)
    yield {"type": "speech.audio.done", "usage": msgspec.to_builtins(usage)}


class SpeechUsage(msgspec.Struct):
    """Tokens of a spoken answer."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
