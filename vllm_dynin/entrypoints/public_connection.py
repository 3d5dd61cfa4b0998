"""Downloads for a server that strangers talk to: public addresses only, within limits.

vLLM's own connection follows any http(s) URL to any address. This one looks at every address it
connects to, and holds each redirect to the same rules. docs/security.md has the limits.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from vllm import envs
from vllm.connections import HTTPConnection, MediaDownloadSizeExceededError
from vllm.exceptions import VLLMValidationError
from yarl import URL

from vllm_dynin.processors.codecs.limits import DEFAULT_LIMITS

MAX_REDIRECTS = 5
DEFAULT_SECONDS = 30.0
"""A download may take this long where vLLM states no time."""

_CHUNK = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


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
        request_budget: Any = None,
    ) -> bytes:
        """Download a file; each redirect is held to the rules for the first URL.

        Args:
            url: http or https.
            timeout: seconds for everything together.
            allow_redirects: follow up to `MAX_REDIRECTS`.
            max_bytes: of the answer; the server's own limits hold as well.
            request_budget: vLLM 0.33's `MediaRequestDownloadBudget`, charged for what is received.

        Raises:
            VLLMValidationError: the URL, or one it redirects to, is not allowed.
            MediaDownloadSizeExceededError: too large.
            ValueError: the request's budget is used up.
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
                            return await _read(response, most, request_budget)
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
        request_budget: Any = None,
    ) -> bytes:
        """The same for callers that are not asynchronous, in an event loop of its own thread."""
        with ThreadPoolExecutor(1) as thread:
            download = self.async_get_bytes(
                url,
                timeout=timeout,
                allow_redirects=allow_redirects,
                max_bytes=max_bytes,
                request_budget=request_budget,
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


async def _read(response: aiohttp.ClientResponse, most: int, request_budget: Any) -> bytes:
    if (response.content_length or 0) > most:
        raise MediaDownloadSizeExceededError(most, response.content_length)
    data = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        data += chunk
        if len(data) > most:
            raise MediaDownloadSizeExceededError(most, len(data))
        if request_budget is not None:
            request_budget.charge(len(chunk))
    return bytes(data)
