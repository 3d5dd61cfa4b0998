"""`/v1/images/edits`: images in a form, or in JSON by URL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Form, UploadFile
from fastapi import Request as HTTPRequest
from fastapi.responses import Response
from fastapi.routing import APIRoute
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, Json

from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.entrypoints.http.fetching import fetch
from vllm_dynin.entrypoints.http.fields import EDITS, EDITS_JSON
from vllm_dynin.entrypoints.http.forms import FormRoute
from vllm_dynin.entrypoints.http.images import ANSWERS, ImageBody, respond
from vllm_dynin.entrypoints.http.routing import cancellable
from vllm_dynin.entrypoints.http.service import service_of
from vllm_dynin.entrypoints.http.uploads import read_image, read_mask
from vllm_dynin.processors.codecs.image_io import open_image, open_mask
from vllm_dynin.requests import EditImage, Inpaint, Request

MAX_SOURCES = 16
"""Source images of one edit, as in OpenAI's API."""


class EditForm(ImageBody):
    """The form of `/v1/images/edits`."""

    rules = EDITS

    image: list[UploadFile] = Field(default=[], description="The image to change.")
    images: list[UploadFile] = Field(default=[], alias="image[]", description="Several images.")
    mask: UploadFile | None = Field(
        None,
        description="Where to paint: transparent pixels, or white ones where nothing is "
        "transparent. With a mask, `prompt` describes the whole image.",
    )
    vllm_xargs: Json[dict[str, Any]] | None = Field(
        None,
        description="As JSON; `dynin_task: i2i` reads `prompt` as an instruction, mask or not.",
    )


class ImageReference(BaseModel):
    """An image that JSON refers to."""

    model_config = ConfigDict(extra="forbid")

    image_url: str | None = Field(None, description="http, https, or a data URL (base64).")
    file_id: str | None = Field(None, description="Refused: no files are kept here.")

    def url(self) -> str:
        """Where the image is.

        Raises:
            ValueError: it is not said, or by the id of a file.
        """
        if self.file_id is not None:
            raise ValueError(
                f"file_id={self.file_id[:60]!r}: no files are kept here; send the image itself as "
                "image_url, a data URL with its bytes in base64"
            )
        if self.image_url is None:
            raise ValueError("an image without image_url; give an http, https or data URL (base64)")
        return self.image_url


class EditBody(ImageBody):
    """The body of `/v1/images/edits` as JSON."""

    rules = EDITS_JSON

    images: list[ImageReference] = Field(description="The images to change.")
    mask: ImageReference | None = Field(None, description="As in the form.")


@cancellable
async def edit_images_by_url(request: EditBody, raw_request: HTTPRequest) -> Response:
    """The same with a body of JSON."""
    request.check()
    service = service_of(raw_request)
    model_config = service.vllm_config.model_config
    _check_edit(request, len(request.images), "images")

    async def opened(reader: Callable[[bytes], Image.Image], source: ImageReference) -> Image.Image:
        return await service.in_thread(reader, await fetch(source.url(), model_config))

    sources = [await opened(open_image, source) for source in request.images]
    mask = None if request.mask is None else await opened(open_mask, request.mask)
    return await _edited(request, sources, mask, raw_request)


class EditRoute(FormRoute):
    """A route for a form or JSON."""

    json = APIRoute("/v1/images/edits", edit_images_by_url, methods=["POST"])


router = APIRouter(route_class=EditRoute)


@router.post("/v1/images/edits", responses=ANSWERS)
@cancellable
async def edit_images(
    request: Annotated[EditForm, Form(media_type="multipart/form-data")], raw_request: HTTPRequest
) -> Response:
    """Change images as told, or paint a part of one anew."""
    request.check()
    service = service_of(raw_request)
    uploads = [*request.image, *request.images]
    _check_edit(request, len(uploads), "image")
    sources = [await read_image(upload, service) for upload in uploads]
    mask = None if request.mask is None else await read_mask(request.mask, service)
    return await _edited(request, sources, mask, raw_request)


def _check_edit(request: ImageBody, num_sources: int, name: str) -> None:
    if not 1 <= num_sources <= MAX_SOURCES:
        raise ValueError(f"{num_sources} images were sent; send 1 to {MAX_SOURCES} as `{name}`")
    if request.negative_prompt is not None:
        raise ValueError("negative_prompt is for /v1/images/generations; leave it out of an edit")


async def _edited(
    request: ImageBody,
    sources: Sequence[Image.Image],
    mask: Image.Image | None,
    raw_request: HTTPRequest,
) -> Response:
    config = service_of(raw_request).checkpoint.config
    wanted = [_edit(request, index, sources, mask, config) for index in range(request.n)]
    return await respond(request, wanted, raw_request, "image_edit")


def _edit(
    form: ImageBody,
    index: int,
    sources: Sequence[Image.Image],
    mask: Image.Image | None,
    config: LLaDAConfig,
) -> Request:
    asked = (form.vllm_xargs or {}).get("dynin_task")
    is_painting = mask is not None and len(sources) == 1 and asked != Task.IMAGE_TO_IMAGE
    task = Task.TEXT_TO_IMAGE if is_painting else Task.IMAGE_TO_IMAGE
    common: dict[str, Any] = {
        "options": form.options(task, config),
        "seed": form.seed_of(index),
        "temperature": form.temperature,
        "trajectory": form.stream,
    }
    if is_painting:
        assert mask is not None
        return Inpaint(sources[0], mask, form.prompt, **common)
    return EditImage(list(sources), form.prompt, mask, **common)
