"""What every route of ours has in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, ParamSpec, cast

from fastapi import Request as HTTPRequest
from fastapi.responses import Response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import load_aware_call, with_cancellation

from vllm_dynin.entrypoints.http.events import refused_in_time
from vllm_dynin.entrypoints.http.options import Said, noted

P = ParamSpec("P")
Handler = Callable[P, Awaitable[Response]]

_CLIENT_GONE = 499


def cancellable(handler: Handler[P], *, is_counted: bool = True) -> Handler[P]:
    """A handler that ends when its client goes away, and counts for vLLM's load tracking.

    Args:
        handler: takes the HTTP request as `raw_request`, as vLLM's decorators want it, and its
            body, where it has one, as `request`.
        is_counted: False where a handler of vLLM's inside of this one counts already.
    """
    counted = load_aware_call(handler) if is_counted else handler
    decorated = cast("Callable[P, Awaitable[Response | None]]", with_cancellation(counted))

    @wraps(handler)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> Response:
        answer = await decorated(*args, **kwargs)
        # vLLM's decorator returns None to a client that has gone.
        if answer is None:
            return Response(status_code=_CLIENT_GONE)
        body = kwargs.get("request")
        return noted(answer, body) if isinstance(body, Said) else answer

    return wrapper


async def in_time(answer: Response | None, raw_request: HTTPRequest) -> Response:
    """An answer of a handler of vLLM's, refused by status where it begins with a refusal.

    Not a wrapper around that handler: the cancellation of two wrappers in each other does not
    reach what the inner one runs.
    """
    if answer is None:  # its decorator's, to a client that has gone
        return Response(status_code=_CLIENT_GONE)
    return await _in_time(answer=answer, raw_request=raw_request)


async def _refused(answer: Response, raw_request: HTTPRequest) -> Response:
    return await refused_in_time(answer)


_in_time = cancellable(_refused, is_counted=False)


def described(model: Any = None, media_types: tuple[str, ...] = ()) -> dict[int | str, Any]:
    """The answers of a route, for its OpenAPI description.

    Args:
        model: of the JSON answer; None where there is none.
        media_types: other kinds of answer.
    """
    good: dict[str, Any] = {"content": {media_type: {} for media_type in media_types}}
    if model is not None:
        good["model"] = model
    errors = {400: "The request cannot be honoured.", 404: "There is no such model."}
    answers: dict[int | str, Any] = {200: good}
    for status, text in errors.items():
        answers[status] = {"model": ErrorResponse, "description": text}
    return answers
