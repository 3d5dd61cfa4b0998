"""Who is let in: keys, origins, health; and what is traced."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.routing import Mount, Route, WebSocketRoute
from vllm.entrypoints.launchers.app import build_app
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_dynin import compat
from vllm_dynin.entrypoints.http.plugin import ROUTERS

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


NEEDS_NO_KEY = ("/health", "/metrics", "/", "/static/app.js", "/version", "/openapi.json")


def closed(path: str) -> bool:
    """Whether a route must ask for the key: all but this list."""
    open_ = {"/", "/health", "/ping", "/version", "/metrics", "/openapi.json", "/docs", "/redoc"}
    return path not in open_ | {"/docs/oauth2-redirect", "/static"}


def test_every_described_route_needs_the_key(operated):
    """On the running server, vLLM's routes and ours."""
    paths = httpx.get(operated.url + "/openapi.json", timeout=120).json()["paths"]
    found = {
        (method, path): httpx.request(method.upper(), operated.url + path, content=b"{}")
        for path, methods in paths.items()
        for method in methods
        if closed(path)
    }
    assert {"/invocations", "/tokenize", "/detokenize", "/generative_scoring"} <= set(paths)
    assert len(found) > 20
    answers = {name: answer.status_code for name, answer in found.items()}
    assert set(answers.values()) == {401}, answers


@pytest.mark.parametrize("route", ["/invocations", "/tokenize", "/generative_scoring"])
def test_with_the_key(http, route):
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1, "temperature": 0, "text_2": "x"}
    assert http.post(route, json=body).status_code not in (401, 404, 500)


def whole_app(monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """Every route that vLLM can have, those for development too, and ours."""
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    compat.guard_every_path()
    try:
        from vllm.entrypoints.common.cli_args import make_arg_parser  # 0.33
    except ImportError:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    parser = make_arg_parser(FlexibleArgumentParser())
    tasks: Any = ("generate", "transcription", "realtime", "render")
    app = build_app(parser.parse_args(["--api-key", KEY]), tasks)
    for router in ROUTERS:
        app.include_router(router)
    return app


def test_every_route_there_is_needs_the_key(monkeypatch):
    """Also what the description leaves out, and what other settings switch on."""
    app = whole_app(monkeypatch)
    client = TestClient(app, raise_server_exceptions=False)
    answers = {}
    for route in app.routes:
        path = getattr(route, "path", "")
        assert isinstance(route, Route | Mount | WebSocketRoute), route
        if not closed(path) or isinstance(route, WebSocketRoute):
            continue
        for method in getattr(route, "methods", None) or {"GET"}:
            answers[method, path] = client.request(method, path, content=b"{}").status_code
    assert {"/collective_rpc", "/reset_mm_cache"} <= {path for _, path in answers}
    assert len(answers) > 40
    assert set(answers.values()) == {401}, answers


@pytest.mark.parametrize("route", NEEDS_NO_KEY)
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
