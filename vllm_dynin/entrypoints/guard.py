"""What a client may send before any route looks at it: size and time of request bodies.

vLLM's server reads a body of any length for any time. This ASGI middleware stands in front of all
routes, ours and vLLM's. docs/security.md has the limits; nothing of vLLM is needed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, fields

from starlette.types import ASGIApp, Message, Receive, Scope, Send

DRAIN_SECONDS = 2.0
"""A refused client may go on sending for so long before its connection is closed."""


@dataclass(frozen=True, kw_only=True)
class BodyLimits:
    """Limits on request bodies. Exactly at a limit is allowed.

    Args:
        max_bytes: of one body.
        max_total_bytes: of all bodies whose requests are not answered yet; what comes on top is
            told to come back later.
        grace_seconds: a body may take this long whatever its length, and
        min_bytes_per_second: longer by its length at this rate.

    Raises:
        ValueError: a limit is not positive.
    """

    max_bytes: int = 128 * 2**20
    max_total_bytes: int = 1024 * 2**20
    grace_seconds: int = 20
    min_bytes_per_second: int = 64 * 2**10

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name}={value} must be positive")


class _RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class BodyGuard:
    """The middleware.

    Args:
        app: what stands behind it.
        limits: on bodies.
    """

    def __init__(self, app: ASGIApp, limits: BodyLimits | None = None) -> None:
        self._app, self._limits = app, limits or BodyLimits()
        self._total = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(self._limits, receive)
        is_started = is_refused = False

        async def refuse(refusal: _RefusedError) -> None:
            nonlocal is_refused
            is_refused = True
            if not is_started:
                await _answer(receive, send, refusal)

        async def guarded_receive() -> Message:
            if is_refused:
                return {"type": "http.disconnect"}
            before = body.num_bytes
            try:
                return await body.receive(self._limits.max_total_bytes - self._total)
            except _RefusedError as refusal:
                # Here and not where the route ends: routes turn what they catch into answers.
                await refuse(refusal)
                return {"type": "http.disconnect"}
            finally:
                self._total += body.num_bytes - before

        async def guarded_send(message: Message) -> None:
            nonlocal is_started
            if not is_refused:
                is_started = True
                await send(message)

        try:
            body.check_stated_length(scope)
            await self._app(scope, guarded_receive, guarded_send)
        except _RefusedError as refusal:
            await refuse(refusal)
        except Exception:
            if not is_refused:  # a route that was told of a client that has gone
                raise
        finally:
            self._total -= body.num_bytes


class _Body:
    """A request body on its way in."""

    def __init__(self, limits: BodyLimits, receive: Receive) -> None:
        self._limits, self._receive = limits, receive
        self._started = time.monotonic()
        self._is_complete = False
        self.num_bytes = 0

    def check_stated_length(self, scope: Scope) -> None:
        """Refuse by `Content-Length`, before a byte is read."""
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit():
                self._check(int(value))

    async def receive(self, room: int) -> Message:
        """The next message.

        Args:
            room: bytes that all bodies together may still have.
        """
        if self._is_complete:  # from now on the client can only disconnect
            return await self._receive()
        message = await self._next(room)
        self._is_complete = not message.get("more_body", False)
        return message

    async def _next(self, room: int) -> Message:
        limits = self._limits
        allowed = limits.grace_seconds + self.num_bytes / limits.min_bytes_per_second
        left = self._started + allowed - time.monotonic()
        try:
            async with asyncio.timeout(left):
                message = await self._receive()
        except TimeoutError:
            raise _RefusedError(
                408,
                f"the body came at less than {limits.min_bytes_per_second} bytes per second: "
                f"{self.num_bytes} bytes in {allowed:.0f} s; send it faster, or a smaller one",
            ) from None
        size = len(message.get("body", b""))
        self._check(self.num_bytes + size)
        if size > room:
            raise _RefusedError(
                503,
                f"the server holds {limits.max_total_bytes} bytes of unanswered requests already; "
                "try again later",
            )
        self.num_bytes += size
        return message

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self._limits.max_bytes:
            raise _RefusedError(
                413,
                f"the body has {num_bytes} bytes or more, over the limit of "
                f"{self._limits.max_bytes}; send smaller media, or media by URL",
            )


async def _answer(receive: Receive, send: Send, refusal: _RefusedError) -> None:
    """An error as OpenAI's clients know it; the connection is closed, the body not kept."""
    error: dict[str, object] = {"message": str(refusal), "type": "invalid_request_error"}
    error |= {"param": None, "code": refusal.status}
    content = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers.append((b"content-length", str(len(content)).encode()))
    if refusal.status == 503:
        headers.append((b"retry-after", b"5"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": True})
    # A client in the middle of its body would see a reset instead of the answer, if the connection
    # were closed over what it has sent. So that is read for a moment, and dropped.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b""})
