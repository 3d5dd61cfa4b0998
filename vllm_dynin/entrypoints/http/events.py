"""Streamed answers: server-sent events, and errors while the status can still be one."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi.responses import JSONResponse, Response, StreamingResponse

from vllm_dynin.entrypoints.http.failures import described

T = TypeVar("T")

DONE = "data: [DONE]\n\n"
"""Ends a stream of chat chunks."""


async def first_of(items: AsyncGenerator[T]) -> AsyncIterator[T]:
    """The same items, once there is a first one: what goes wrong before it is a 4xx.

    Args:
        items: closed at the end, or when nobody reads on.
    """
    first = await anext(items)

    async def all_of() -> AsyncIterator[T]:
        async with aclosing(items):
            yield first
            async for item in items:
                yield item

    return all_of()


async def refused_in_time(answer: Response) -> Response:
    """An answer of vLLM's; a stream whose first event is an error is that error instead.

    VLLM's routes send the status before the engine has looked at the request, so that a refusal
    comes as an event of a good answer.

    Args:
        answer: waited for until there is a first event.
    """
    if not isinstance(answer, StreamingResponse) or answer.media_type != "text/event-stream":
        return answer
    events = aiter(answer.body_iterator)
    try:
        first = await anext(events, "")
    except BaseException:  # the client has gone
        if isinstance(events, AsyncGenerator):
            await events.aclose()
        raise
    if error := _error_in(first if isinstance(first, str) else bytes(first).decode()):
        async for _ in events:  # to its end, which takes it out of the engine
            pass
        return JSONResponse({"error": error}, error["code"])

    async def all_of() -> AsyncIterator[Any]:
        try:
            yield first
            async for item in events:
                yield item
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()

    answer.body_iterator = all_of()
    return answer


def _error_in(event: str) -> dict[str, Any] | None:
    """The error that an event tells of; None where it tells of something else."""
    data = event.partition("data: ")[2]
    if '"error"' not in data[:4_000]:
        return None
    try:
        error = json.loads(data)["error"]
        return error if error["code"] in range(400, 600) else None
    except (ValueError, KeyError, TypeError):
        return None


async def sse(events: AsyncGenerator[dict[str, Any]], *, last: str = "") -> AsyncGenerator[str]:
    """Server-sent events. One that cannot be made any more is an error event, the last one.

    Args:
        events: their data; `type`, where there is one, names the event.
        last: sent behind them.
    """
    is_started = False
    async with aclosing(events):
        try:
            async for data in events:
                yield _line(data)
                is_started = True
        except Exception as error:
            if not is_started:  # the status has not been sent
                raise
            yield _line(described(error), "error")
    if last:
        yield last


def _line(data: dict[str, Any], name: str | None = None) -> str:
    name = name or data.get("type")
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n"
