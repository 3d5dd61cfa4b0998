"""`/v1/completions` and `/v1/responses`: vLLM's handlers, behind bodies that read null as not said.

VLLM refuses null in fields that have a default of another kind, some of its checks fail with a 500
where a field has another shape than they expect, and a streamed refusal is a 200. Remove when it
does none of these.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from fastapi import Request as HTTPRequest
from fastapi.responses import Response
from vllm.entrypoints.openai.completion.api_router import create_completion
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse
from vllm.entrypoints.openai.responses.api_router import create_responses
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest, ResponsesResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from vllm_dynin.entrypoints.http.options import Said
from vllm_dynin.entrypoints.http.routing import described, in_time

router = APIRouter()


class CompletionBody(Said, CompletionRequest):
    """vLLM's completion request."""

    @classmethod
    def prepared(cls, said: dict[str, Any]) -> dict[str, Any]:
        """Without what vLLM refuses although it asks for nothing."""
        if not said.get("stream"):
            said.pop("stream_options", None)
        return said


class ResponsesBody(Said, ResponsesRequest):
    """vLLM's request for a response."""


def _answers(model: Any) -> dict[str, Any]:
    return {
        "dependencies": [Depends(validate_json_request)],
        "responses": described(model, ("text/event-stream",)),
    }


@router.post("/v1/completions", **_answers(CompletionResponse))
async def create_text(request: CompletionBody, raw_request: HTTPRequest) -> Response:
    """Go on from a prompt."""
    return await in_time(await create_completion(request, raw_request), raw_request)


@router.post("/v1/responses", **_answers(ResponsesResponse))
async def create_response(request: ResponsesBody, raw_request: HTTPRequest) -> Response:
    """Answer an input of text and media in text."""
    return await in_time(await create_responses(request, raw_request), raw_request)
