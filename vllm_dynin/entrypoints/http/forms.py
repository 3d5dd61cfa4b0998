"""Routes for forms: their text is UTF-8 and nothing else; the same path may take JSON as well."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from fastapi import Request as HTTPRequest
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.formparsers import MultiPartException, MultiPartParser

from vllm_dynin.entrypoints.http.refusals import FORM

Handler = Callable[[HTTPRequest], Coroutine[Any, Any, Response]]


class FormRoute(APIRoute):
    """A route for a form.

    Starlette reads text that is not UTF-8 as Latin-1, and says nothing. Here it is refused.
    """

    json: ClassVar[APIRoute | None] = None
    """What answers a body of JSON; vLLM lets a plugin have one route a path."""

    def get_route_handler(self) -> Handler:
        """What answers requests."""
        of_form, route = super().get_route_handler(), type(self).json
        of_json = None if route is None else route.get_route_handler()

        async def handle(request: HTTPRequest) -> Response:
            kind = request.headers.get("content-type", "").lower()
            if of_json is not None and "json" in kind:
                request.scope["route"] = route
                return await of_json(request)
            if kind.startswith(FORM) and "boundary=" in kind:
                parser = _Parser(request.headers, request.stream())
                try:
                    request._form = await parser.parse()
                except MultiPartException as error:
                    raise ValueError(
                        f"the form cannot be read ({error.message.rstrip('.')}); send it as "
                        f"{FORM}, its texts in UTF-8"
                    ) from error
            return await of_form(request)

        return handle


class _Parser(MultiPartParser):
    def on_part_end(self) -> None:
        part = self._current_part
        if part.file is None:
            try:
                bytes(part.data).decode()
            except UnicodeDecodeError:
                raise MultiPartException(
                    f"the field {part.field_name[:60]!r} is not UTF-8"
                ) from None
        super().on_part_end()
