"""`/v1/images/generations`, and what it has in common with edits."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter
from fastapi import Request as HTTPRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from openai.types import ImagesResponse
from PIL import Image
from pydantic import Field
from vllm.exceptions import VLLMNotFoundError

from vllm_dynin import envs
from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.entrypoints.http import image_files, partials
from vllm_dynin.entrypoints.http.events import first_of, sse
from vllm_dynin.entrypoints.http.fields import GENERATIONS
from vllm_dynin.entrypoints.http.image_files import ImageFormat
from vllm_dynin.entrypoints.http.image_store import MEDIA_TYPES, ImageStore
from vllm_dynin.entrypoints.http.options import (
    Body,
    Scale,
    Seed,
    Temperature,
    one_of,
    parse_options,
    quality_steps,
    size_options,
)
from vllm_dynin.entrypoints.http.routing import cancellable, described
from vllm_dynin.entrypoints.http.service import Answer, MediaService, service_of
from vllm_dynin.report import REPORT
from vllm_dynin.requests import Request, TextToImage
from vllm_dynin.sampling.params import MAX_STEPS, DenoiseParams

router = APIRouter()

MAX_IMAGES = 10
"""Images of one HTTP request, as in OpenAI's API."""

ANSWERS = described(ImagesResponse, ("text/event-stream",))
FILES = described(media_types=tuple(MEDIA_TYPES.values()))


class ImageBody(Body):
    """What both routes take."""

    prompt: str = Field(max_length=32_000, description="Of the image as it is to be.")
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    size: str | None = Field(None, description="WIDTHxHEIGHT in pixels, or auto.")
    quality: str | None = Field(None, description="low, medium or high: sets the steps.")
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: ImageFormat = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    seed: Seed | None = Field(None, description="Of the first image; the next has the next seed.")
    temperature: Temperature | None = Field(None, description="1 by default; 0 is greedy.")
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance_scale: Scale | None = None
    negative_prompt: str | None = Field(
        None, max_length=32_000, description="Of what to guide away from; needs guidance."
    )

    def check(self) -> None:
        """Check what several fields say together.

        Raises:
            ValueError: they cannot be honoured.
        """
        if self.response_format == "url" and self.stream:
            raise ValueError(
                "response_format='url' with stream=true: events carry b64_json; use it"
            )
        if self.output_compression not in (None, 100) and self.output_format == "png":
            raise ValueError(
                f"output_compression={self.output_compression} with output_format='png', which is "
                "lossless; use jpeg or webp, or leave it out"
            )
        if self.partial_images and not self.stream:
            raise ValueError(
                f"partial_images={self.partial_images} come while streaming; set stream=true"
            )
        if self.stream and self.n > 1:
            raise ValueError(f"n={self.n} with stream=true: a stream carries one image; use n=1")

    def options(self, task: Task, config: LLaDAConfig) -> DenoiseParams:
        """Our options of these fields."""
        steps = one_of(
            quality=quality_steps(self.quality, task, config),
            num_inference_steps=self.num_inference_steps,
        )
        return parse_options(
            self.vllm_xargs,
            steps=steps,
            guidance_scale=self.guidance_scale,
            **size_options(self.size),
        )

    def seed_of(self, index: int) -> int | None:
        """Seed of the image at `index`."""
        return None if self.seed is None else (self.seed + index) % 2**63


class GenerationBody(ImageBody):
    """The body of `/v1/images/generations`."""

    rules = GENERATIONS


@router.post("/v1/images/generations", responses=ANSWERS)
@cancellable
async def create_images(request: GenerationBody, raw_request: HTTPRequest) -> Response:
    """Make images from a description."""
    request.check()
    service = service_of(raw_request)
    options = request.options(Task.TEXT_TO_IMAGE, service.checkpoint.config)
    if request.negative_prompt is not None:
        options = _guided_away(request.negative_prompt, options, service)
    wanted = [
        TextToImage(
            request.prompt,
            options=options,
            seed=request.seed_of(index),
            temperature=request.temperature,
            trajectory=request.stream,
        )
        for index in range(request.n)
    ]
    return await respond(request, wanted, raw_request, "image_generation")


@router.get("/v1/images/files/{name}", response_class=Response, responses=FILES)
async def read_stored_image(name: str, raw_request: HTTPRequest) -> Response:
    """An image that an answer has linked to."""
    service = service_of(raw_request)
    store: ImageStore | None = getattr(raw_request.app.state, "dynin_images", None)
    data = None if store is None else await service.in_thread(store.get, name)
    if data is None:
        raise VLLMNotFoundError(f"there is no image {name[:60]!r} (any more)")
    return Response(data, media_type=MEDIA_TYPES[name.rpartition(".")[2]])


def _guided_away(text: str, options: DenoiseParams, service: MediaService) -> DenoiseParams:
    """Options that guide away from a description."""
    head = tuple(service.checkpoint.assembler.text_to_image(text))
    if options.uncond_prompt_token_ids is not None:
        raise ValueError(
            "negative_prompt and dynin_uncond_prompt_token_ids say the same; give one of them"
        )
    return msgspec.structs.replace(options, uncond_prompt_token_ids=head)


async def respond(
    body: ImageBody, wanted: Sequence[Request], http: HTTPRequest, event: str
) -> Response:
    """The answer of either route.

    Args:
        body: of the request.
        wanted: a request for each image.
        http: the HTTP request.
        event: name of the events, where it is streamed.
    """
    service = service_of(http)
    service.model_name(body.model)
    store = _store_for(body, http)
    if not body.stream:
        answers = await service.answers(wanted, http, "img")
        payload = await service.in_thread(_payload, body, answers, service, store)
        for item in payload["data"]:
            if "url" in item:
                item["url"] = str(http.url_for("read_stored_image", name=item["url"]))
        return JSONResponse(payload)
    (request,) = wanted
    sent = await service.prepare(request, http, "img")
    events = partials.image_events(service, sent, num_partials=body.partial_images or 0)
    shown = _described(events, body, service, event)
    return StreamingResponse(await first_of(sse(shown)), media_type="text/event-stream")


def _store_for(body: ImageBody, http: HTTPRequest) -> ImageStore | None:
    """Where the images of an answer are kept; None where they are in the answer.

    Raises:
        ValueError: a link is asked for, but there is no store.
    """
    if body.response_format == "b64_json":
        return None
    store: ImageStore | None = getattr(http.app.state, "dynin_images", None)
    if store is None:
        raise ValueError(
            "response_format='url': this server keeps no images to link to; use b64_json, or have "
            f"the operator name a folder in {envs.IMAGE_STORE}"
        )
    return store


def _data(body: ImageBody, image: Image.Image, store: ImageStore | None) -> dict[str, str]:
    """An image of an answer; for a link, the name it is kept under."""
    form = (image, body.output_format, body.output_compression)
    if store is None:
        return {"b64_json": image_files.encoded(*form)}
    return {"url": store.put(image_files.file_of(*form), body.output_format)}


def _payload(
    body: ImageBody,
    answers: Sequence[Answer],
    service: MediaService,
    store: ImageStore | None,
) -> dict[str, Any]:
    images = [answer.result.image for answer in answers]
    first = images[0]
    assert first is not None
    payload: dict[str, Any] = {
        "created": int(time.time()),
        "background": "opaque",
        "data": [_data(body, image, store) for image in images if image is not None],
        "output_format": body.output_format,
        "size": f"{first.width}x{first.height}",
        "usage": image_files.usage(answers, service.checkpoint.config.vocabulary),
    }
    if _wants_report(body):
        payload[REPORT] = [msgspec.to_builtins(answer.result.report) for answer in answers]
    return payload


async def _described(
    events: partials.ImageEvents, body: ImageBody, service: MediaService, name: str
) -> AsyncGenerator[dict[str, Any]]:
    """The events of a stream, in the form of the images API."""
    async for index, image, answer in events:
        data: dict[str, Any] = {
            "type": f"{name}.partial_image" if answer is None else f"{name}.completed",
            "created_at": int(time.time()),
            "background": "opaque",
            "output_format": body.output_format,
            "quality": body.quality or "auto",
            "size": f"{image.width}x{image.height}",
            "b64_json": await service.in_thread(
                image_files.encoded, image, body.output_format, body.output_compression
            ),
        }
        if answer is None:
            data["partial_image_index"] = index
        else:
            data["usage"] = image_files.usage([answer], service.checkpoint.config.vocabulary)
            if _wants_report(body):
                data[REPORT] = msgspec.to_builtins(answer.result.report)
        yield data


def _wants_report(body: ImageBody) -> bool:
    return bool((body.vllm_xargs or {}).get(REPORT))
