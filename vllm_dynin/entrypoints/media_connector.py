"""Media by URL, for a server that strangers talk to.

vLLM's own connector follows any http(s) URL to any address and decodes what it finds with readers
of its own. This one reaches public addresses only (`public_connection.py`), applies
`--allowed-media-domains` at every redirect, and decodes with our readers (`media_io/`), whatever
way a medium arrives. vLLM loads it for models of this family, unless VLLM_MEDIA_CONNECTOR names
another. docs/security.md has the limits.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from vllm import envs
from vllm.connections import HTTPConnection
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media.audio import AudioEmbeddingMediaIO, AudioMediaIO
from vllm.multimodal.media.base import MediaIO
from vllm.multimodal.media.connector import MediaConnector
from vllm.multimodal.media.image import ImageEmbeddingMediaIO, ImageMediaIO
from vllm.multimodal.media.video import VideoEmbeddingMediaIO, VideoMediaIO

from vllm_dynin.entrypoints.media_io.audio import GuardedAudioIO
from vllm_dynin.entrypoints.media_io.guarded import GuardedIO
from vllm_dynin.entrypoints.media_io.image import GuardedImageIO
from vllm_dynin.entrypoints.media_io.video import GuardedVideoIO
from vllm_dynin.entrypoints.public_connection import PublicConnection
from vllm_dynin.processors.codecs.base64_text import split_data_url
from vllm_dynin.processors.codecs.limits import MediaError

T = TypeVar("T")

READERS: dict[type[MediaIO[Any]], type[GuardedIO[Any]]] = {
    AudioMediaIO: GuardedAudioIO,
    ImageMediaIO: GuardedImageIO,
    VideoMediaIO: GuardedVideoIO,
}
"""vLLM's readers, and what is used in their place."""

REFUSED_READERS = (AudioEmbeddingMediaIO, ImageEmbeddingMediaIO, VideoEmbeddingMediaIO)
"""Readers of embeddings, which these models do not take: a medium is token ids to them."""


class GuardedMediaConnector(MediaConnector):
    """vLLM's connector with the rules above.

    Args:
        media_io_kwargs: of the readers, by medium; those of the request over the server's.
        connection: `PublicConnection` if None.
        allowed_local_media_path: as in vLLM.
        allowed_media_domains: as in vLLM, and for redirects as well.
        decoded_budget: bytes that the media of one request may have once decoded (vLLM 0.33).
        download_budget: bytes that one request may download (vLLM 0.33).
    """

    def __init__(
        self,
        media_io_kwargs: dict[str, dict[str, Any]] | None = None,
        connection: HTTPConnection | None = None,
        *,
        allowed_local_media_path: str = "",
        allowed_media_domains: list[str] | None = None,
        decoded_budget: Any = None,
        download_budget: Any = None,
    ) -> None:
        super().__init__(
            media_io_kwargs,
            connection or PublicConnection(allowed_media_domains or ()),
            allowed_local_media_path=allowed_local_media_path,
            allowed_media_domains=allowed_media_domains,
        )
        # Behind super().__init__, where 0.33 sets them to None; 0.32 does not know them.
        self.decoded_budget, self.download_budget = decoded_budget, download_budget

    def load_from_url(
        self, url: str, media_io: MediaIO[T], *, fetch_timeout: int | None = None
    ) -> T:
        """Load a medium; see the module for what is refused."""
        url = self._checked(url)
        return super().load_from_url(url, self._guarded(media_io), fetch_timeout=fetch_timeout)

    async def load_from_url_async(
        self, url: str, media_io: MediaIO[T], *, fetch_timeout: int | None = None
    ) -> T:
        """Load a medium; see the module for what is refused."""
        url = self._checked(url)
        return await super().load_from_url_async(
            url, self._guarded(media_io), fetch_timeout=fetch_timeout
        )

    def fetch_audio(self, audio_url: str) -> tuple[NDArray[np.float32], float]:
        """A recording: samples of one channel, and their rate."""
        reader = self._reader(GuardedAudioIO)
        return self.load_from_url(audio_url, reader, fetch_timeout=envs.VLLM_AUDIO_FETCH_TIMEOUT)

    async def fetch_audio_async(self, audio_url: str) -> tuple[NDArray[np.float32], float]:
        """A recording: samples of one channel, and their rate."""
        return await self.load_from_url_async(
            audio_url, self._reader(GuardedAudioIO), fetch_timeout=envs.VLLM_AUDIO_FETCH_TIMEOUT
        )

    def fetch_image(self, image_url: str, *, image_mode: str | None = "RGB") -> Any:
        """A picture in RGB, whatever `image_mode` says: `MediaWithBytes[Image]`."""
        reader = self._reader(GuardedImageIO)
        return self.load_from_url(image_url, reader, fetch_timeout=envs.VLLM_IMAGE_FETCH_TIMEOUT)

    async def fetch_image_async(self, image_url: str, *, image_mode: str | None = "RGB") -> Any:
        """A picture in RGB, whatever `image_mode` says: `MediaWithBytes[Image]`."""
        return await self.load_from_url_async(
            image_url, self._reader(GuardedImageIO), fetch_timeout=envs.VLLM_IMAGE_FETCH_TIMEOUT
        )

    def fetch_video(
        self,
        video_url: str,
        *,
        image_mode: str | None = "RGB",
        video_processor: str | None = None,
    ) -> Any:
        """A video with the frames wanted of it: `OpenedVideo`. vLLM's arguments change nothing."""
        reader = self._reader(GuardedVideoIO)
        return self.load_from_url(video_url, reader, fetch_timeout=envs.VLLM_VIDEO_FETCH_TIMEOUT)

    async def fetch_video_async(
        self,
        video_url: str,
        *,
        image_mode: str | None = "RGB",
        video_processor: str | None = None,
    ) -> Any:
        """A video with the frames wanted of it: `OpenedVideo`. vLLM's arguments change nothing."""
        return await self.load_from_url_async(
            video_url, self._reader(GuardedVideoIO), fetch_timeout=envs.VLLM_VIDEO_FETCH_TIMEOUT
        )

    def fetch_audio_embedding(self, data: str) -> NoReturn:
        """Refuse: these models take no embeddings."""
        raise _refused_embedding()

    async def fetch_audio_embedding_async(self, data: str) -> NoReturn:
        """Refuse: these models take no embeddings."""
        raise _refused_embedding()

    def fetch_image_embedding(self, data: str) -> NoReturn:
        """Refuse: these models take no embeddings."""
        raise _refused_embedding()

    async def fetch_image_embedding_async(self, data: str) -> NoReturn:
        """Refuse: these models take no embeddings."""
        raise _refused_embedding()

    def fetch_video_embedding(self, data: str) -> NoReturn:
        """Refuse: these models take no embeddings."""
        raise _refused_embedding()

    async def fetch_video_embedding_async(self, data: str) -> NoReturn:
        """Refuse: these models take no embeddings."""
        raise _refused_embedding()

    def _reader(self, reader: type[GuardedIO[T]]) -> GuardedIO[T]:
        options = self.media_io_kwargs.get(reader.medium, {})
        return reader(decoded_budget=self.decoded_budget, **options)

    def _guarded(self, media_io: MediaIO[T]) -> MediaIO[T]:
        """A reader of ours, or the one that stands for vLLM's.

        Raises:
            TypeError: neither; a version of vLLM brings a reader that nothing here stands for.
        """
        if isinstance(media_io, GuardedIO):
            return media_io
        if isinstance(media_io, REFUSED_READERS):
            raise _refused_embedding()
        if type(media_io) not in READERS:
            raise TypeError(f"{type(media_io).__name__} decodes by itself; READERS has no guard")
        return cast(MediaIO[T], self._reader(READERS[type(media_io)]))

    def _load_data_url(self, url: str, media_io: MediaIO[T]) -> T:
        try:
            media_type, data = split_data_url(url)
        except MediaError as error:
            raise VLLMValidationError(str(error)) from error
        return media_io.load_base64(media_type, data)

    def _checked(self, url: str) -> str:
        scheme, colon, _ = url[:64].lstrip().partition(":")
        allowed = ["http", "https", "data", *(["file"] if self.allowed_local_media_path else [])]
        if not colon or scheme.lower() not in allowed:
            raise VLLMValidationError(
                f"media URL {url[:32]!r} is refused; it must be one of {', '.join(allowed)}"
            )
        return url.strip()


def _refused_embedding() -> VLLMValidationError:
    return VLLMValidationError(
        "embeddings are refused: to these models a medium is token ids; send the medium itself"
    )
