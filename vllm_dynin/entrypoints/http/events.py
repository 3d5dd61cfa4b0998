"""Streamed answers: server-sent events, and errors while the status can still be one."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar

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
