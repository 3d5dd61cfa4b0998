"""Media that a message names by URL: fetched by vLLM, under its own rules, and decoded by us."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import vllm.envs as envs
from vllm.config import ModelConfig
from vllm.exceptions import VLLMClientError, VLLMUnprocessableEntityError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

from vllm_dynin.entrypoints.media_io.guarded import GuardedIO
from vllm_dynin.entrypoints.media_io.video import FRAME_LIST
from vllm_dynin.processors.codecs.base64_text import from_base64, is_data_url, split_data_url
from vllm_dynin.processors.codecs.video import VideoSource, frames_from_base64

_SCHEMES = ("http:", "https:")
_FETCH_SECONDS = 30


class _FileBytes(GuardedIO[bytes]):
    """Takes a file as it comes, so that our own decoders open it where the request is made."""

    def decode(self, data: bytes) -> bytes:
        """The bytes."""
        return data


async def input_audio(part: Mapping[str, Any]) -> bytes:
    """The recording of an `input_audio` object.

    Args:
        part: `data` is base64 or a data URL; `format` is not needed, the file says what it is.

    Raises:
        ValueError: there is no text in it, or no base64.
    """
    data = part.get("data")
    if not isinstance(data, str):
        raise ValueError(
            f"input_audio.data is {type(data).__name__}, not text; send the file's bytes in base64"
        )
    return await asyncio.to_thread(from_base64, data)


async def fetch(url: Any, config: ModelConfig) -> bytes:
    """The medium at a URL.

    vLLM's connector fetches it, with its domain rules (`--allowed-media-domains`), its redirect
    rules and its cache. Files of the server are not read, whatever it allows.

    Args:
        url: of http, https, or with the data in it.
        config: of the server, for the rules.

    Raises:
        ValueError: another kind of URL, or one the rules forbid.
        VLLMUnprocessableEntityError: it cannot be had.
    """
    if isinstance(url, str) and is_data_url(url):
        return await asyncio.to_thread(from_base64, url)
    if not isinstance(url, str) or not url.lower().startswith(_SCHEMES):
        raise ValueError(
            f"{str(url)[:60]!r} cannot be fetched; give an http, https or data URL (base64)"
        )
    connector = MEDIA_CONNECTOR_REGISTRY.load(
        envs.VLLM_MEDIA_CONNECTOR,
        media_io_kwargs=None,
        allowed_local_media_path="",
        allowed_media_domains=config.allowed_media_domains,
    )
    try:
        data: bytes = await connector.load_from_url_async(
            url, _FileBytes(), fetch_timeout=_FETCH_SECONDS
        )
    except (ValueError, VLLMClientError):
        raise
    except Exception as error:
        raise VLLMUnprocessableEntityError(
            f"{url[:60]!r} cannot be fetched: {type(error).__name__}"
        ) from error
    return data


async def fetch_video(url: Any, config: ModelConfig) -> VideoSource:
    """The video at a URL, which may also be a list of pictures (`data:video/jpeg;base64,A,B,…`).

    Args:
        url: as in `fetch`.
        config: as in `fetch`.

    Raises:
        ValueError: as in `fetch`.
        VLLMUnprocessableEntityError: as in `fetch`.
    """
    if isinstance(url, str) and is_data_url(url):
        media_type, data = split_data_url(url)
        if media_type == FRAME_LIST:
            return await asyncio.to_thread(frames_from_base64, data)
    return await fetch(url, config)
