"""Requests made up from the server's own description of our routes: none may be its undoing."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from .conftest import KEY

OURS = {
    "/v1/images/generations": "post",
    "/v1/images/edits": "post",
    "/v1/audio/speech": "post",
    "/v1/audio/transcriptions": "post",
    "/v1/audio/voices": "get",
    "/v1/chat/completions": "post",
}
ANY = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(scope="module")
def description(operated):
    return httpx.get(operated.url + "/openapi.json", timeout=120).json()


@pytest.fixture(scope="module")
def operations(description, operated):
    """Our routes, as the server describes them."""
    schema = schemathesis.openapi.from_dict(description)
    schema.config.update(base_url=operated.url, request_timeout=120)
    return {path: schema[path][method.upper()] for path, method in OURS.items()}


def send_made_up_requests(operation, mode, number):
    """None gets a 5xx.

    Args:
        operation: a route and its method.
        mode: requests that fit the description, or requests that do not.
        number: of requests.
    """
    headers = {"Authorization": f"Bearer {KEY}"}

    @settings(ANY, max_examples=number)
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case):
        case.call_and_validate(headers=headers, checks=[not_a_server_error])

    send()


def test_the_description_is_one(description):
    """Valid by the standard's own schema, with every route of ours in it."""
    schemathesis.openapi.from_dict(description).validate()
    for path, method in OURS.items():
        operation = description["paths"][path][method]
        assert operation["responses"].keys() >= {"200"}, path
        assert operation.get("description") or operation.get("summary"), path


@pytest.mark.parametrize("path", [path for path, method in OURS.items() if method == "post"])
def test_no_server_error(operations, path):
    send_made_up_requests(operations[path], GenerationMode.NEGATIVE, 10)


# Requests that fit are answered, and that takes its time.
@pytest.mark.slow
@pytest.mark.parametrize("path", OURS)
def test_no_server_error_at_length(operations, path):
    send_made_up_requests(operations[path], GenerationMode.POSITIVE, 60)
    if OURS[path] == "post":  # a GET without parameters cannot be wrong
        send_made_up_requests(operations[path], GenerationMode.NEGATIVE, 300)


def test_a_message_in_a_form_of_another_model(http):
    """What a made-up request found: vLLM reads it as Harmony's, and it was an error of ours."""
    message = {"author": {"role": "user"}, "content": [{"type": "text", "text": "a"}]}
    for extra in ({}, {"role": "user", "author": {"role": "user", "name": "a"}}):
        body = {"model": "tiny", "messages": [message | extra], "max_tokens": 8}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code < 500, answer.text
