"""Answers 5xx: one sentence, a request id in the header and in the log, the connection unharmed."""

from __future__ import annotations

import json
import logging
import re
import uuid
from contextvars import ContextVar
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.exception_handling.handlers.vllm_error import vllm_error_handler
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

logger = logging.getLogger(__name__)

HEADER = "X-Request-Id"
_USABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")
_request_id: ContextVar[str] = ContextVar("dynin_request_id", default="")


def request_id() -> str:
    """Id of the HTTP request that is being answered: the client's, or one of ours."""
    return _request_id.get() or uuid.uuid4().hex


def cause_of(error: Exception) -> Exception:
    """What went wrong: the engine wraps what a request's preparation raises, without a word.

    Returns:
        A refusal, where it was one: vLLM's own routes take a `ValueError` for the client's fault.
    """
    cause = error.__cause__
    if not isinstance(error, EngineGenerateError) or not isinstance(cause, Exception):
        return error
    if isinstance(cause, ValueError | TypeError | OverflowError):
        refusal = VLLMValidationError(str(cause))
        refusal.__cause__ = cause
        return refusal
    return cause


def described(error: Exception) -> dict[str, Any]:
    """The body of an answer to what went wrong; logged, where it is the server's fault."""
    error = cause_of(error)
    body = create_error_response(error).model_dump()
    details = body["error"]
    if details["code"] >= 500:
        details["message"] = _sentence(error, details["message"])
        logger.error(
            "request %s failed: %s", request_id(), details["message"], exc_info=_traced(error)
        )
    return body


def _traced(error: Exception) -> Exception | None:
    """What to print a traceback of: nothing where vLLM knows the reason by name."""
    return None if type(error).__module__.startswith("vllm.") else error


def _sentence(error: Exception, message: str) -> str:
    if isinstance(error, EngineDeadError):  # whose own words send the reader to a stack trace
        return (
            "the engine has died under this request, and the server ends; send it to another one, "
            "or again when it is back"
        )
    first = message.strip().splitlines()[0] if message.strip() else ""
    if type(error).__module__.startswith("vllm.") and first:
        return first
    name = type(error).__name__
    said = f"{name}: {first}" if first else name
    return f"the server failed to answer this request ({said[:300]}); its log has more under the id"


async def engine_failed(request: HTTPRequest, error: EngineGenerateError) -> Response:
    """Answer what the engine raised for one request: the exception handler for it."""
    cause = cause_of(error)
    if isinstance(cause, VLLMClientError):
        body = described(cause)
        return JSONResponse(body, body["error"]["code"])
    if cause is error:
        answer: Response = await vllm_error_handler(request, error)
        return answer
    body = described(cause)
    return JSONResponse(body, body["error"]["code"])


async def engine_died(request: HTTPRequest, error: EngineDeadError) -> Response:
    """Answer a request that the engine has died under; vLLM's handler ends the server."""
    await vllm_error_handler(request, error)
    return JSONResponse(described(error), 500)


def attach(app: FastAPI) -> None:
    """Handle failures of an application. Call behind whatever adds middleware inside of this."""
    app.add_exception_handler(EngineGenerateError, engine_failed)  # type: ignore[arg-type]
    app.add_exception_handler(EngineDeadError, engine_died)  # type: ignore[arg-type]
    app.add_middleware(Failures)


class Failures:
    """Gives every request an id, and every failure a sentence.

    A failure that nobody handles would reach uvicorn, which closes the connection behind the
    answer; the client's next request on it is lost then. So it ends here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        name = given if _USABLE_ID.fullmatch(given) else uuid.uuid4().hex
        key = HEADER.lower().encode()
        # In place: vLLM's routes read it there, and so does its own middleware, outside of this.
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        headers[:] = [*(pair for pair in headers if pair[0] != key), (key, name.encode())]
        token = _request_id.set(name)
        args = getattr(scope["app"].state, "args", None)
        answer = _Answer(send, name, is_named=getattr(args, "enable_request_id_headers", False))
        try:
            await self._app(scope, receive, answer.send)
        except Exception as error:
            if not await answer.fail(error):
                raise
        finally:
            _request_id.reset(token)


class _Answer:
    """An answer on its way out."""

    def __init__(self, send: Send, name: str, *, is_named: bool) -> None:
        self._send, self._name, self._is_named = send, name, is_named
        self._start: Message | None = None
        self._is_sent = self._is_over = self._is_events = False

    async def send(self, message: Message) -> None:
        """Pass a message on; the body of a JSON answer 5xx is looked at first."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            if not self._is_named:
                headers.setdefault(HEADER, self._name)
            kind = headers.get("content-type", "")
            self._is_events = kind.startswith("text/event-stream")
            self._start = message
            if message["status"] < 500 or not kind.startswith("application/json"):
                await self._begin()
            return
        if not self._is_sent:
            message = self._with_sentence(message)
            await self._begin()
        self._is_over = not message.get("more_body", False)
        await self._send(message)

    async def fail(self, error: Exception) -> bool:
        """Answer a failure, while that can be done; False where the connection must be cut."""
        if self._is_over:
            logger.error("request %s failed behind its answer", self._name, exc_info=error)
            return True
        body = described(error)
        if not self._is_sent:
            names = {} if self._is_named else {HEADER: self._name}
            answer = JSONResponse(body, body["error"]["code"], names)
            await self._send(
                {
                    "type": "http.response.start",
                    "status": answer.status_code,
                    "headers": answer.raw_headers,
                }
            )
            await self._send({"type": "http.response.body", "body": answer.body})
            return True
        if self._is_events:
            event = f"event: error\ndata: {json.dumps(body)}\n\n".encode()
            await self._send({"type": "http.response.body", "body": event})
            return True
        return False  # half a file: a clean end would pass for a whole one

    async def _begin(self) -> None:
        assert self._start is not None
        self._is_sent = True
        await self._send(self._start)

    def _with_sentence(self, message: Message) -> Message:
        """The first part of a JSON answer 5xx; one without a word gets a sentence."""
        assert self._start is not None
        status = self._start["status"]
        try:
            body = json.loads(message.get("body", b""))
            details = body["error"]
            text = str(details["message"]).strip()
        except (ValueError, KeyError, TypeError):
            return message  # another kind of answer, or one in parts
        if not text:
            details["message"] = (
                "the server failed to answer this request; its log has more under the request id"
            )
            data = json.dumps(body).encode()
            MutableHeaders(raw=self._start["headers"])["content-length"] = str(len(data))
            message = {**message, "body": data}
        logger.warning("request %s was answered with %d: %s", self._name, status, text)
        return message
