"""Who is let in: keys, origins, health; and what is traced."""

from __future__ import annotations

import time

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from .conftest import KEY, ORIGIN

OURS = (
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/audio/speech",
    "/v1/audio/transcriptions",
)


@pytest.mark.parametrize("route", [*OURS, "/v1/chat/completions", "/v1/audio/voices", "/v1/models"])
@pytest.mark.parametrize("key", [None, "wrong", KEY[:-1]])
def test_without_the_key(operated, route, key):
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    method = "GET" if route.endswith(("voices", "models")) else "POST"
    answer = httpx.request(method, operated.url + route, headers=headers, content=b"{")
    assert answer.status_code == 401


@pytest.mark.parametrize("route", ["/health", "/metrics", "/", "/static/app.js", "/version"])
def test_what_needs_no_key(operated, route):
    assert httpx.get(operated.url + route).status_code == 200


@pytest.mark.parametrize("route", OURS)
def test_origins(operated, route):
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "x"}
    good = httpx.options(operated.url + route, headers={"origin": ORIGIN} | ask)
    assert good.headers["access-control-allow-origin"] == ORIGIN
    bad = httpx.options(operated.url + route, headers={"origin": "https://evil.example"} | ask)
    assert "access-control-allow-origin" not in bad.headers


def test_origins_of_a_refused_body(operated):
    """A browser must be told of the refusal too."""
    headers = {"origin": ORIGIN, "authorization": f"Bearer {KEY}"}
    body = b"x" * (17 << 20)
    answer = httpx.post(operated.url + OURS[0], content=body, headers=headers, timeout=60)
    assert answer.status_code == 413
    assert answer.headers["access-control-allow-origin"] == ORIGIN


def spans(collector):
    for body in list(collector.bodies):
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                yield from scope.spans


def test_a_request_is_traced(http, collector):
    """VLLM's own span, for our route, in the client's trace."""
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    answer = http.post(
        "/v1/images/generations",
        json={"prompt": "a cat", "num_inference_steps": 2},
        headers={"traceparent": f"00-{trace}-{parent}-01"},
    )
    assert answer.status_code == 200, answer.text
    end = time.monotonic() + 20
    found = []
    while not found and time.monotonic() < end:
        time.sleep(0.2)
        found = [span for span in spans(collector) if span.trace_id.hex() == trace]
    assert [span.parent_span_id.hex() for span in found] == [parent]
    keys = {attribute.key: attribute.value for attribute in found[0].attributes}
    assert keys["gen_ai.usage.completion_tokens"].int_value > 0
    assert keys["gen_ai.latency.e2e"].double_value > 0
