"""Files that come with a form: read within their limits, opened in a thread."""

from __future__ import annotations

from fastapi import UploadFile
from PIL import Image

from vllm_dynin.entrypoints.http.service import MediaService
from vllm_dynin.processors.codecs.image_io import open_image, open_mask

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
    """An uploaded mask, mode L; see `open_mask`.

    Raises:
        MediaError: not an image, or over a limit.
    """
    data = await read_upload(upload)
    return await service.in_thread(open_mask, data)
