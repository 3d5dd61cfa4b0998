"""Files that come with a form: read within their limits, opened in a thread."""

from __future__ import annotations

import io

from fastapi import UploadFile
from PIL import Image

from vllm_dynin.entrypoints.http.service import MediaService
from vllm_dynin.processors.codecs.image_io import FORMATS, open_image
from vllm_dynin.processors.codecs.limits import DEFAULT_LIMITS

MAX_UPLOAD = 50 * 2**20
"""Bytes of one uploaded file."""

_CHUNK = 1 << 16


async def read_upload(upload: UploadFile, most: int = MAX_UPLOAD) -> bytes:
    """The bytes of an uploaded file.

    Raises:
        ValueError: there are none, or more than `most`.
    """
    name = (upload.filename or "")[:80]
    parts, total = [], 0
    while part := await upload.read(_CHUNK):
        total += len(part)
        if total > most:
            raise ValueError(f"the file {name!r} has more than {most} bytes; send a smaller one")
        parts.append(part)
    if not total:
        raise ValueError(f"the file {name!r} is empty; send its bytes")
    return b"".join(parts)


async def read_image(upload: UploadFile, service: MediaService) -> Image.Image:
    """An uploaded image, RGB.

    Raises:
        MediaError: not an image, or over a limit.
    """
    data = await read_upload(upload)
    return await service.in_thread(open_image, data)


async def read_mask(upload: UploadFile, service: MediaService) -> Image.Image:
    """An uploaded mask, mode L: white where to paint.

    Transparent pixels are where to paint, as in OpenAI's API; an image without any transparency is
    taken as it is.

    Raises:
        MediaError: not an image, or over a limit.
    """
    data = await read_upload(upload)
    return await service.in_thread(_mask, data)


def _mask(data: bytes) -> Image.Image:
    shown = open_image(data)  # checks everything, and lays transparency on white
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            return shown.convert("L")
        alpha = image.convert("RGBA").getchannel("A")
    if alpha.getextrema() == (255, 255):
        return shown.convert("L")
    return alpha.point(lambda value: 255 if value == 0 else 0)


__all__ = ["DEFAULT_LIMITS", "MAX_UPLOAD", "read_image", "read_mask", "read_upload"]
