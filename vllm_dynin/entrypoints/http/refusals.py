"""Answers 4xx: one sentence in the shape of OpenAI's API, whoever refuses, on every path.

vLLM answers what pydantic finds with pydantic's own list of errors, and what has no route with
another shape than OpenAI's. Remove when it does neither.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.params import Form
from pydantic import BaseModel, ValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.serve.exception_handling.utils import sanitize_message

from vllm_dynin.entrypoints.http import validation

JSON = "application/json"
FORM = "multipart/form-data"

INSTEAD = {
    "/v1/audio/translations": "the model does not translate; /v1/audio/transcriptions writes down "
    "what is said in English",
    "/v1/images/variations": "send the image with a prompt to /v1/images/edits",
    "/v1/embeddings": "these models answer, and embed nothing",
    "/v1/moderations": "nothing is moderated here",
    "/v1/files": "no files are kept; send media with the request",
    "/v1/batches": "send requests one by one; the server computes together what comes together",
}
"""Routes of OpenAI's API that are not here, and what a client can do."""


def attach(app: FastAPI) -> None:
    """Answer refusals of an application. Its server may set handlers of its own behind this."""
    build = app.build_middleware_stack

    def built() -> ASGIApp:
        # In the last moment: vLLM sets its handlers, and its middleware, behind the endpoints.
        app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
        app.add_exception_handler(ValidationError, invalid)  # type: ignore[arg-type]
        app.add_exception_handler(HTTPException, refused)  # type: ignore[arg-type]
        app.add_exception_handler(AnyHTTPException, refused)  # type: ignore[arg-type]
        app.add_exception_handler(RecursionError, nested)  # type: ignore[arg-type]
        app.user_middleware.insert(0, Middleware(OneShape))
        return build()

    app.build_middleware_stack = built  # type: ignore[method-assign]


def error_body(
    message: str, status: int, param: str | None = None, kind: str | None = None
) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = kind or HTTPStatus(status).phrase.replace(" ", "") + "Error"
    readable = message.encode("utf-8", "backslashreplace").decode()
    return {"error": {"message": readable, "type": kind, "param": param, "code": status}}


async def invalid(
    request: HTTPRequest, error: RequestValidationError | ValidationError
) -> Response:
    """Answer a request with a body that is not what its route takes."""
    body = getattr(error, "body", None)
    errors = list(error.errors())
    if isinstance(error, ValidationError):
        errors = [{**one, "loc": ("body", *one["loc"])} for one in errors]
    sentence, param = _of_the_kind(request), None
    if not sentence and errors and isinstance(errors[0], dict):
        sentence, param = validation.found(errors, body, _model(request))
    elif not sentence:
        sentence = str(errors[0]) if errors else "the request is not what this route takes"
    content = error_body(sanitize_message(sentence), 400, param)
    return JSONResponse(content, 400)


def _body_field(request: HTTPRequest) -> Any:
    route = request.scope.get("route")
    return getattr(getattr(route, "body_field", None), "field_info", None)


def _model(request: HTTPRequest) -> type[BaseModel] | None:
    """What the body of a request is read as."""
    model = getattr(_body_field(request), "annotation", None)
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def _of_the_kind(request: HTTPRequest) -> str:
    """The complaint about a body of another kind than the route reads; empty if it is none."""
    field, path = _body_field(request), request.url.path
    if field is None:
        return ""
    came = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    wanted = FORM if isinstance(field, Form) else JSON
    if wanted == FORM:
        if came in (FORM, "application/x-www-form-urlencoded"):
            return ""
        how = f"send a form, content-type {FORM}"
    else:
        if came == JSON or (came.startswith("application/") and came.endswith("+json")):
            return ""
        how = f"send JSON, content-type {JSON}"
    said = f"the body came as {came[:60]}" if came else "the request has no content-type"
    return f"{said}, which {path} does not read; {how}"


async def refused(request: HTTPRequest, error: AnyHTTPException) -> Response:
    """Answer a request that has no route, or that its route refuses by status."""
    status, detail = error.status_code, str(error.detail)
    if status == HTTPStatus.NOT_FOUND and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = _no_route(request)
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(sorted(_methods(request))) or (error.headers or {}).get("Allow", "")
        detail = f"{request.method} is not a method of {request.url.path}; use {allowed}"
        return JSONResponse(error_body(detail, status), status, {"Allow": allowed})
    elif cause := _cause(error):
        detail = _unreadable(cause)
    content = error_body(sanitize_message(detail), status)
    return JSONResponse(content, status, error.headers)


async def nested(request: HTTPRequest, error: RecursionError) -> Response:
    """Answer a request whose body has more levels than can be walked through."""
    return JSONResponse(error_body(_unreadable(error), 400), 400)


def _no_route(request: HTTPRequest) -> str:
    path = request.url.path
    said = f"there is no {path[:100]} here"
    if path.startswith("/v1/models/"):
        return f"{said}: GET /v1/models lists the models"
    if path.rstrip("/") in INSTEAD:
        return f"{said}: {INSTEAD[path.rstrip('/')]}"
    routes = sorted({route for route in _paths(request) if route.startswith("/v1/")})
    return f"{said}; routes are {', '.join(routes)}"


def _paths(request: HTTPRequest) -> set[str]:
    return {
        path for route in request.app.routes if "{" not in (path := getattr(route, "path", "{"))
    }


def _methods(request: HTTPRequest) -> set[str]:
    path = request.url.path
    found = [r for r in request.app.routes if getattr(r, "path", None) == path]
    return {method for route in found for method in getattr(route, "methods", None) or ()}


def _cause(error: AnyHTTPException) -> BaseException | None:
    """Why a body could not be read, where FastAPI or Starlette says no more than that."""
    if error.detail == "There was an error parsing the body":
        return error.__cause__
    return error.__context__ if isinstance(error.__context__, MultiPartException) else None


def _unreadable(cause: BaseException) -> str:
    if isinstance(cause, RecursionError):
        return "the body is nested too deep; send JSON of fewer levels"
    if isinstance(cause, UnicodeDecodeError):
        return "the body holds text that is not UTF-8; send UTF-8"
    words = re.split(r"[;\n]|\.$", str(getattr(cause, "message", None) or cause))
    return f"the body cannot be read ({words[0][:200]}); send it as the documentation has it"


class OneShape:
    """Rewrites JSON answers from 400 on that are not of OpenAI's shape, such as a 401 of vLLM's."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        held: Message | None = None

        async def shaped(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start" and message["status"] >= 400:
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                if headers.get("content-type", "").startswith(JSON):
                    held = message
                    return
            elif held is not None:
                message = _in_shape(held, message)
                start, held = held, None
                await send(start)
            await send(message)

        await self._app(scope, receive, shaped if scope["type"] == "http" else send)


def _in_shape(start: Message, message: Message) -> Message:
    """The body of an answer; its start is changed in place."""
    if message.get("more_body", False):
        return message
    try:
        body = json.loads(message.get("body", b""))
    except ValueError:
        return message
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        if {"type", "param", "code"} <= error.keys() or body.get("type") == "error":
            return message
        content = error_body(error["message"], start["status"], None, error.get("type"))
    else:
        said = error or (body.get("detail") if isinstance(body, dict) else None) or body
        text = said if isinstance(said, str) else json.dumps(said)[:300]
        if start["status"] == HTTPStatus.UNAUTHORIZED:
            text = f"{text}: send a key of this server as 'Authorization: Bearer KEY'"
        content = error_body(text, start["status"])
    data = json.dumps(content).encode()
    MutableHeaders(raw=start["headers"])["content-length"] = str(len(data))
    return {**message, "body": data}
