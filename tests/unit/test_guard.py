"""The guard of request bodies, in front of a small application, over a real socket."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from vllm_dynin.entrypoints.guard import BodyGuard, BodyLimits

LIMITS = BodyLimits(
    max_bytes=100_000, max_total_bytes=150_000, grace_seconds=1, min_bytes_per_second=1_000_000
)


async def length(request: Request) -> JSONResponse:
    try:
        return JSONResponse(len(await request.body()))
    except Exception:  # as FastAPI does: whatever goes wrong in reading is an answer of the route
        return JSONResponse("the route's own error", 400)


async def hold(request: Request) -> StreamingResponse:
    await request.body()

    async def slowly():
        yield b"a"
        import asyncio

        await asyncio.sleep(1)
        yield b"b"

    return StreamingResponse(slowly())


@contextmanager
def serving(limits):
    app = Starlette(
        routes=[
            Route("/", length, methods=["GET", "POST"]),
            Route("/hold", hold, methods=["POST"]),
        ]
    )
    app.add_middleware(BodyGuard, limits=limits)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # clients wait from here on; uvicorn comes to it in its own time
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def url():
    with serving(LIMITS) as url:
        yield url


@pytest.mark.parametrize("size", [0, 1, 99_999, 100_000])
def test_a_body_within_the_limit(url, size):
    answer = httpx.post(url, content=b"x" * size)
    assert (answer.status_code, answer.json()) == (200, size)


def test_without_a_body(url):
    assert httpx.get(url).json() == 0


def in_chunks(size, pause=0.0, chunk=10_000):
    for start in range(0, size, chunk):
        yield b"x" * min(chunk, size - start)
        time.sleep(pause)


@pytest.mark.parametrize("content", [b"x" * 100_001, b"x" * 5_000_000])
def test_a_stated_length_over_the_limit(url, content):
    answer = httpx.post(url, content=content)
    assert answer.status_code == 413
    message = answer.json()["error"]["message"]
    assert str(len(content)) in message and "100000" in message


def test_a_length_over_the_limit_that_is_not_stated(url):
    answer = httpx.post(url, content=in_chunks(300_000))
    assert answer.status_code == 413
    assert "over the limit of 100000" in answer.json()["error"]["message"]


def test_the_length_is_not_believed(url):
    """A chunked body beside a small `Content-Length` is the server's to refuse or to measure."""
    headers = {"content-length": "5", "transfer-encoding": "chunked"}
    try:
        answer = httpx.post(url, content=in_chunks(300_000), headers=headers)
    except httpx.TransportError:
        return
    assert answer.status_code in (400, 413)


def test_a_slow_body(url):
    """A byte now and then: over after the grace, not when the client likes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n")
        started = time.monotonic()
        for _ in range(4):
            client.sendall(b"x")
            time.sleep(0.05)
        head = client.recv(4096).decode()
    assert head.startswith("HTTP/1.1 408")
    assert 0.8 < time.monotonic() - started < 4


def test_a_body_that_is_slow_in_parts_only(url):
    answer = httpx.post(url, content=in_chunks(60_000, pause=0.06))
    assert (answer.status_code, answer.json()) == (200, 60_000)


def test_bodies_of_all_clients_together(url):
    """What runs holds its body; the next one is told to come back, and is served when it does."""
    with httpx.stream("POST", url + "/hold", content=b"x" * 90_000) as held:
        pieces = held.iter_raw()
        next(pieces)
        refused = httpx.post(url, content=b"x" * 90_000)
        small = httpx.post(url, content=b"x" * 10_000)
        assert b"".join(pieces) == b"b"
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert "150000" in refused.json()["error"]["message"]
    assert small.status_code == 200
    assert httpx.post(url, content=b"x" * 90_000).status_code == 200


def test_bytes_are_given_back_after_refusals(url):
    for _ in range(5):
        assert httpx.post(url, content=in_chunks(300_000)).status_code == 413
    with httpx.Client() as client:
        assert client.post(url, content=b"x" * 100_000).json() == 100_000


def test_the_refusal_is_what_openai_clients_understand(url):
    error = json.loads(httpx.post(url, content=b"x" * 200_000).text)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == 413


@pytest.mark.parametrize("name", ["max_bytes", "max_total_bytes", "grace_seconds"])
def test_limits_are_positive(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        BodyLimits(**{name: 0})
