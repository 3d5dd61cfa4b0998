"""Media by URL, for a server that strangers talk to.

vLLM's own connector follows any http(s) URL to any address. This one reaches public addresses
only, applies `--allowed-media-domains` at every redirect, and looks at the header of a picture or
a video before it is decoded. vLLM loads it for models of this family, unless VLLM_MEDIA_CONNECTOR
names another. docs/security.md has the limits.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import socket
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import aiohttp
import av
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from PIL import Image
from vllm import envs
from vllm.connections import HTTPConnection, MediaDownloadSizeExceededError
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media.base import MediaIO
from vllm.multimodal.media.connector import MediaConnector
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO
from yarl import URL

from vllm_dynin.processors.codecs.limits import DEFAULT_LIMITS, MediaError

MAX_REDIRECTS = 5
MAX_DECODED_BYTES = 512 * 2**20
"""RGB bytes of all frames that are taken of one video."""
DEFAULT_SECONDS = 30.0
"""A download may take this long where vLLM states no time."""

_CHUNK = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

T = TypeVar("T")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet at large.

    An IPv6 address that stands for an IPv4 address (mapped, 6to4, Teredo, NAT64) is judged by that.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        teredo = ip.teredo
        inner = ip.ipv4_mapped or ip.sixtofour or (teredo[1] if teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


class PublicResolver(AbstractResolver):
    """Names into public addresses; what it returns is what is connected to."""

    def __init__(self) -> None:
        self._resolver = DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of a host.

        Raises:
            VLLMValidationError: one of them is not public.
        """
        found = await self._resolver.resolve(host, port, family)
        for result in found:
            if not is_public(result["host"]):
                raise _refused_address(host)
        return found

    async def close(self) -> None:
        """Release the resolver."""
        await self._resolver.close()


class PublicConnection(HTTPConnection):
    """Downloads from public addresses, and from the hosts that the operator has named.

    Args:
        allowed_hosts: of `--allowed-media-domains`; where there are any, no other host will do, and
            these may have private addresses.
    """

    def __init__(self, allowed_hosts: Sequence[str] = ()) -> None:
        super().__init__()
        self._allowed_hosts = frozenset(allowed_hosts)

    async def async_get_bytes(
        self,
        url: str,
        *,
        timeout: float | None = None,
        allow_redirects: bool = True,
        max_bytes: int | None = None,
    ) -> bytes:
        """Download a file; each redirect is held to the rules for the first URL.

        Args:
            url: http or https.
            timeout: seconds for everything together.
            allow_redirects: follow up to `MAX_REDIRECTS`.
            max_bytes: of the answer; the server's own limits hold as well.

        Raises:
            VLLMValidationError: the URL, or one it redirects to, is not allowed.
            MediaDownloadSizeExceededError: too large.
        """
        limits = [DEFAULT_LIMITS.max_bytes, envs.VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB * 2**20, max_bytes]
        most = min(limit for limit in limits if limit)
        resolver = None if self._allowed_hosts else PublicResolver()
        connector = aiohttp.TCPConnector(resolver=resolver, force_close=True)
        total = aiohttp.ClientTimeout(total=timeout or DEFAULT_SECONDS)
        # Without `trust_env`: a proxy would resolve names out of our sight.
        async with aiohttp.ClientSession(connector=connector, timeout=total) as session:
            try:
                target = URL(url)
                for _ in range(MAX_REDIRECTS + 1):
                    self._check(target)
                    async with session.get(
                        target, headers=self._headers(), allow_redirects=False
                    ) as response:
                        if response.status not in _REDIRECTS or not allow_redirects:
                            response.raise_for_status()
                            return await _read(response, most)
                        target = target.join(URL(response.headers.get("Location", "")))
            except aiohttp.InvalidURL as error:  # among them 127.1 and other odd ways to write it
                raise VLLMValidationError(
                    f"the media URL is refused: {error}; use a plain http(s) URL"
                ) from error
        raise VLLMValidationError(
            f"the media URL redirects more than {MAX_REDIRECTS} times; give the final one"
        )

    def get_bytes(
        self,
        url: str,
        *,
        timeout: float | None = None,
        allow_redirects: bool = True,
        max_bytes: int | None = None,
    ) -> bytes:
        """The same for callers that are not asynchronous, in an event loop of its own thread."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as thread:
            download = self.async_get_bytes(
                url, timeout=timeout, allow_redirects=allow_redirects, max_bytes=max_bytes
            )
            return thread.submit(asyncio.run, download).result()

    def _check(self, url: URL) -> None:
        if url.scheme not in ("http", "https") or not url.host:
            raise VLLMValidationError(
                f"media URL with scheme {url.scheme!r} is refused; use http, https or data"
            )
        if self._allowed_hosts:
            if url.host not in self._allowed_hosts:
                raise VLLMValidationError(
                    f"media from {url.host!r} is refused: not one of --allowed-media-domains"
                )
            return
        try:
            is_refused = not is_public(url.host)
        except ValueError:  # a name; the resolver looks at its addresses
            return
        if is_refused:
            raise _refused_address(url.host)


def _refused_address(host: str) -> VLLMValidationError:
    return VLLMValidationError(
        f"media from {host!r} is refused: it has an address that is not public; send the file as "
        "a data: URL, or have the operator name the host in --allowed-media-domains"
    )


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    if (response.content_length or 0) > most:
        raise MediaDownloadSizeExceededError(most, response.content_length)
    data = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        data += chunk
        if len(data) > most:
            raise MediaDownloadSizeExceededError(most, len(data))
    return bytes(data)


class GuardedMediaConnector(MediaConnector):
    """VLLM's connector with the rules above. Arguments as there."""

    def __init__(
        self,
        media_io_kwargs: dict[str, dict[str, Any]] | None = None,
        connection: HTTPConnection | None = None,
        *,
        allowed_local_media_path: str = "",
        allowed_media_domains: list[str] | None = None,
    ) -> None:
        super().__init__(
            media_io_kwargs,
            connection or PublicConnection(allowed_media_domains or ()),
            allowed_local_media_path=allowed_local_media_path,
            allowed_media_domains=allowed_media_domains,
        )

    def load_from_url(
        self, url: str, media_io: MediaIO[T], *, fetch_timeout: int | None = None
    ) -> T:
        """Load a medium; see the module for what is refused."""
        self._check_scheme(url)
        return super().load_from_url(url, _checked(media_io), fetch_timeout=fetch_timeout)

    async def load_from_url_async(
        self, url: str, media_io: MediaIO[T], *, fetch_timeout: int | None = None
    ) -> T:
        """Load a medium; see the module for what is refused."""
        self._check_scheme(url)
        return await super().load_from_url_async(
            url, _checked(media_io), fetch_timeout=fetch_timeout
        )

    def _check_scheme(self, url: str) -> None:
        scheme, colon, _ = url.partition(":")
        allowed = ["http", "https", "data", *(["file"] if self.allowed_local_media_path else [])]
        if not colon or scheme.lower() not in allowed:
            raise VLLMValidationError(
                f"media URL {url[:32]!r} is refused; it must be one of {', '.join(allowed)}"
            )


def _checked(media_io: MediaIO[T]) -> MediaIO[T]:
    """The same reader, which looks at the header before vLLM decodes a picture or a video."""
    load = media_io.load_bytes
    check: Callable[[bytes], None]
    if isinstance(media_io, VideoMediaIO):
        check = partial(check_video, num_frames=media_io.num_frames)
    elif isinstance(media_io, ImageMediaIO):
        check = check_image
    else:
        return media_io

    def load_bytes(data: bytes) -> Any:
        try:
            check(data)
        except MediaError as error:
            raise VLLMValidationError(str(error)) from error
        return load(data)

    cast(Any, media_io).load_bytes = load_bytes  # made for this one medium
    return cast(MediaIO[T], media_io)


def check_image(data: bytes) -> None:
    """Check a picture against the limits, by its header.

    Raises:
        MediaError: not a picture, or over a limit.
    """
    limits = DEFAULT_LIMITS
    limits.check("max_bytes", len(data), "the size of the picture in bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise MediaError(
            f"the picture is over the limit max_pixels={limits.max_pixels}: {error}"
        ) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise MediaError(f"cannot read the picture: {error}; send PNG, JPEG or WebP") from error
    limits.check("max_pixels", width * height, "the size of the picture in pixels")


def check_video(data: bytes, num_frames: int) -> None:
    """Check a video against the limits, by its header.

    Args:
        data: the file.
        num_frames: how many frames will be kept.

    Raises:
        MediaError: not a video, or over a limit.
    """
    limits = DEFAULT_LIMITS
    limits.check("max_bytes", len(data), "the size of the video in bytes")
    if num_frames < 1:
        raise MediaError(f"num_frames={num_frames} must be positive: a video is not taken whole")
    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.video[0]
            width, height = stream.width, stream.height
            frames = stream.frames
            seconds = (container.duration or 0) / av.time_base
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise MediaError(f"cannot read the video: {error}; send mp4, mkv, webm or avi") from error
    if width < 1 or height < 1:
        raise MediaError("cannot read the video: it has no picture; send mp4, mkv, webm or avi")
    limits.check("max_frame_pixels", width * height, "the size of a frame in pixels")
    limits.check("max_frames", frames, "the number of frames")
    limits.check("max_seconds", seconds, "the duration of the video in seconds")
    decoded = 3 * width * height * num_frames
    if decoded > MAX_DECODED_BYTES:
        raise MediaError(
            f"{num_frames} frames of {width}×{height} pixels are {decoded} bytes, over the "
            f"limit {MAX_DECODED_BYTES}; send a smaller video or ask for fewer frames"
        )
