"""What a server needs beside its routes: guarded bodies, an orderly end, metrics, the page.

Added by the endpoint plugin, in front of our routes and vLLM's alike.
"""

from __future__ import annotations

import asyncio
import logging
import time
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.engine.protocol import EngineClient
from vllm.exceptions import GracefulHTTPError
from vllm.v1.engine.exceptions import EngineDeadError

from vllm_dynin import envs
from vllm_dynin.entrypoints.guard import BodyGuard, BodyLimits
from vllm_dynin.entrypoints.http import failures, refusals
from vllm_dynin.entrypoints.http.unsaid import NullsUnsaid
from vllm_dynin.entrypoints.metrics import watch_encoding
from vllm_dynin.entrypoints.ui import add_page

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5
"""What a client that comes during the end is told to wait for."""

_MIB = 2**20
_POLL_SECONDS = 0.05
_SERVED_TO_THE_END = ("/metrics",)


def attach(app: FastAPI) -> None:
    """Put the guards in front of an application, and the page into it where it is wanted.

    Raises:
        ValueError: an environment variable of ours is wrong.
    """
    defaults = BodyLimits()
    limits = BodyLimits(
        max_bytes=envs.positive(envs.MAX_BODY_MB, defaults.max_bytes // _MIB) * _MIB,
        max_total_bytes=envs.positive(envs.MAX_TOTAL_BODY_MB, defaults.max_total_bytes // _MIB)
        * _MIB,
        grace_seconds=envs.positive(envs.BODY_SECONDS, defaults.grace_seconds),
    )
    app.add_middleware(NullsUnsaid)  # the last one added is the first that sees a request
    app.add_middleware(BodyGuard, limits=limits)
    app.add_middleware(ClosingGate)
    failures.attach(app)
    refusals.attach(app)
    if envs.wants_page():
        add_page(app)


def start(engine: EngineClient, state: State) -> None:
    """Watch an engine: its end, and its encoders' times. Called in the server's event loop."""
    _announce_shutdown(engine, state)
    state.dynin_watch = asyncio.create_task(watch_encoding(engine))  # held, or it is collected


class ClosingGate:
    """Answers 503 from SIGTERM on: requests that run are finished, no new ones are begun.

    That goes for `/health` too, so that a load balancer sends its requests elsewhere.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or not."""
        if scope["type"] != "http" or scope["path"] in _SERVED_TO_THE_END:
            await self._app(scope, receive, send)
            return
        state = scope["app"].state
        if getattr(state, "dynin_is_closing", False):
            await _closing_answer()(scope, receive, send)
            return
        state.dynin_num_open = getattr(state, "dynin_num_open", 0) + 1
        try:
            await self._app(scope, receive, send)
        finally:
            state.dynin_num_open -= 1


def _closing_answer() -> JSONResponse:
    body = refusals.error_body(
        "the server is shutting down and takes no new requests; send it again, to another replica "
        "or a little later",
        503,
        kind="service_unavailable",
    )
    headers = {"Retry-After": str(RETRY_SECONDS), "Connection": "close"}
    return JSONResponse(body, 503, headers)


def _is_no_orderly_end(record: logging.LogRecord) -> bool:
    """Whether a line of vLLM's is to be logged while the engine is shut down.

    The task that reads what the engine says fails when it is gone, and is cancelled a moment too
    late: a traceback of `EngineDeadError` at every orderly end. Remove when it is cancelled first.
    """
    return record.exc_info is None or not isinstance(record.exc_info[1], EngineDeadError)


def _announce_shutdown(engine: Any, state: State) -> None:
    """Note when the engine is shut down, and tell the requests that are left over then.

    VLLM's server calls `engine.shutdown` on SIGTERM, in a thread, and tells nobody. It goes on to
    accept requests, which the engine drops; and requests that its drain has not finished wait for
    ever (0.32: without --shutdown-timeout that is all of them). So the engine is left alone until
    every open request has its answer, decoded and sent, or the time is over. Remove when vLLM's
    server does this.
    """
    shutdown, loop = engine.shutdown, asyncio.get_running_loop()

    def announced(timeout: float | None = None) -> None:
        state.dynin_is_closing = True
        logging.getLogger("vllm.v1.engine.async_llm").addFilter(_is_no_orderly_end)
        end = time.monotonic() + (timeout or 0)
        while getattr(state, "dynin_num_open", 0) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        shutdown(timeout=None if timeout is None else max(0.0, end - time.monotonic()))
        if not loop.is_closed():  # it is when the process cleans up after itself
            loop.call_soon_threadsafe(fail_left_over)

    def fail_left_over() -> None:
        left = engine.output_processor.get_num_unfinished_requests()
        if left:
            logger.warning("%d requests were not finished in time and are told so", left)
            engine.output_processor.propagate_error(
                GracefulHTTPError(
                    "the server was shut down before the answer; send it again",
                    HTTPStatus.SERVICE_UNAVAILABLE,
                )
            )

    engine.shutdown = announced
