"""What a client has not said: null in JSON, blank fields in forms. Dropped before a route looks.

SDKs and generated clients write every field they know, null where their user said nothing; browsers
send every field of a form, blank. Both mean what leaving the field out means, whatever the field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from typing import Any

from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_dynin.entrypoints.http import half_characters
from vllm_dynin.entrypoints.http.refusals import error_body

_NULL = re.compile(rb":\s*null\b")
_THEIR_OWN = frozenset(
    {"tools", "functions", "schema", "json_schema", "structured_outputs", "metadata", "arguments"}
)
"""Fields whose value is the client's own JSON, where null may mean something."""

_VERBATIM = frozenset({"stop", "bad_words", "prompt", "suffix"})
"""Fields in which white space is meant: a line break ends an answer, or is to be continued."""


def without_nulls(data: Any) -> Any:
    """JSON without the fields that are null; items of lists are kept."""
    if isinstance(data, dict):
        return {
            name: value if name in _THEIR_OWN else without_nulls(value)
            for name, value in data.items()
            if value is not None
        }
    if isinstance(data, list):
        return [without_nulls(item) for item in data]
    return data


def without_blanks(form: Mapping[str, Any], required: Set[str]) -> dict[str, Any]:
    """Fields of a body without the blank ones; those that are required stay, to be refused.

    Args:
        form: fields by name; a list is one that was sent several times.
        required: names that must be there.
    """
    said = {}
    for name, value in form.items():
        if name in _VERBATIM and value not in ("", "null", None):
            said[name] = value
            continue
        if isinstance(value, list) and value:
            value = [item for item in value if not _is_blank(item)] or None
        if name in required or not _is_blank(value):
            said[name] = value
    return said


def _is_blank(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() in ("", "null")  # what a script's FormData makes of null
    if isinstance(value, UploadFile):  # a file field nobody has chosen a file for
        return not value.filename and not value.size
    return value is None


class NullsUnsaid:
    """Takes null fields out of JSON bodies, for every route, ours and vLLM's.

    Since it reads them, it refuses those with text that is none.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not _is_json(scope):
            await self._app(scope, receive, send)
            return
        parts, message = [], None
        while True:
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                break
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        body = b"".join(parts)
        if wrong := _complaint(body, scope["path"]):
            await JSONResponse(error_body(wrong, 400), 400)(scope, receive, send)
            return
        if _NULL.search(body):
            body = _rewritten(body)
            length = str(len(body)).encode()
            headers = [
                (name, length if name == b"content-length" else value)
                for name, value in scope["headers"]
            ]
            scope = {**scope, "headers": headers}
        read: Message = {"type": "http.request", "body": body, "more_body": False}
        pending = [read] if message["type"] == "http.request" else [message]

        async def rest() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, rest, send)


def _is_json(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return scope["method"] == "POST" and b"json" in headers.get(b"content-type", b"").lower()


def _rewritten(body: bytes) -> bytes:
    try:
        return json.dumps(without_nulls(json.loads(body))).encode()
    except (ValueError, RecursionError):  # no JSON: the route says so
        return body


def _complaint(body: bytes, path: str) -> str:
    """What is wrong with a body; empty if nothing is, or nothing that its route does not say."""
    if path == "/invocations" and not body.lstrip().startswith(b"{"):  # vLLM takes it for granted
        return "the body is no JSON object; send one with the fields of a request"
    if not half_characters.may_hold_some(body):
        return ""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):  # no JSON: the route says so
        return ""
    try:
        half_characters.check(data)
    except ValueError as error:
        return str(error)
    return ""
