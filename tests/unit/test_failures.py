"""What a client sees of failures, over sockets of a real server without an engine behind it."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from argparse import Namespace
from collections.abc import Iterator

import httpx
import pytest

pytest.importorskip("vllm", reason="the routes are part of the server")

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from vllm_dynin.entrypoints.http import failures, operating
from vllm_dynin.entrypoints.http.events import first_of, refused_in_time, sse


def application() -> FastAPI:
    """Routes that fail in every way, put together in the order vLLM's server does it."""
    app = FastAPI()
    app.state.args = Namespace(log_error_stack=False, enable_request_id_headers=False)
    app.state.server = Namespace(should_exit=False)
    app.state.engine_client = Namespace(errored=True, is_running=False)

    @app.get("/good")
    async def good():
        return {"id": failures.request_id()}

    @app.get("/crash")
    async def crash():
        raise AttributeError("'str' object has no attribute 'get'\n  File \"x\", line 1, in y")

    @app.get("/silent")
    async def silent():
        raise RuntimeError

    @app.get("/refused")
    async def refused():
        raise ValueError("size=5: too small")

    @app.get("/engine-refuses")
    async def engine_refuses():
        try:
            raise ValueError("the audio has 5 samples")
        except ValueError as error:
            raise EngineGenerateError from error

    @app.get("/engine-fails")
    async def engine_fails():
        try:
            raise KeyError("row 7")
        except KeyError as error:
            raise EngineGenerateError from error

    @app.get("/dead")
    async def dead():
        raise EngineDeadError

    @app.get("/wordless")
    async def wordless():
        error = {"message": "", "type": "InternalServerError", "param": None, "code": 500}
        return JSONResponse({"error": error}, 500)

    async def events(count):
        for number in range(count):
            yield {"type": "number", "number": number}
        raise RuntimeError("the decoder broke")

    @app.get("/events/{count}")
    async def stream(count: int):
        return StreamingResponse(await first_of(sse(events(count))), media_type="text/event-stream")

    @app.get("/vllm-events")
    async def broken_events():
        async def lines():
            yield "data: {}\n\n"
            raise RuntimeError("nobody caught this")

        return StreamingResponse(lines(), media_type="text/event-stream")

    @app.get("/refused-in-a-stream/{before}")
    async def refused_stream(before: int):
        async def lines():
            for _ in range(before):
                yield 'data: {"choices": [{"delta": {"content": "error"}}]}\n\n'
            error = {"message": "steps=0: at least 1", "type": "BadRequestError", "code": 400}
            yield f"data: {json.dumps({'error': error})}\n\n"
            yield "data: [DONE]\n\n"

        return await refused_in_time(StreamingResponse(lines(), media_type="text/event-stream"))

    @app.get("/half-a-file")
    async def half_a_file():
        async def parts():
            yield b"RIFF"
            raise RuntimeError("the decoder broke")

        return StreamingResponse(parts(), media_type="audio/wav")

    failures.attach(app)
    init_exception_handler(app)
    return app


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(application(), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    """One that has one connection and never opens it again."""
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    with httpx.Client(base_url=url, timeout=20, limits=limits) as client:
        client.get("/good")
        yield client


def connection_of(client: httpx.Client) -> object:
    (connection,) = client._transport._pool.connections
    return connection


FAILING = {
    "/crash": (500, "AttributeError: 'str' object has no attribute 'get'"),
    "/silent": (500, "RuntimeError"),
    "/refused": (400, "size=5: too small"),
    "/engine-refuses": (400, "the audio has 5 samples"),
    "/engine-fails": (500, "KeyError: 'row 7'"),
    "/dead": (500, "the engine has died under this request"),
    "/wordless": (500, "failed to answer this request"),
    "/events/0": (500, "RuntimeError: the decoder broke"),
    "/refused-in-a-stream/0": (400, "steps=0: at least 1"),
}


@pytest.mark.parametrize("path", FAILING)
def test_a_sentence_an_id_and_the_connection(client, path, caplog):
    status, words = FAILING[path]
    before = connection_of(client)
    with caplog.at_level(logging.WARNING, logger=failures.__name__):
        answer = client.get(path, headers={"X-Request-Id": "mine-7"})
    message = answer.json()["error"]["message"]
    assert (answer.status_code, answer.headers["x-request-id"]) == (status, "mine-7")
    assert words in message and "\n" not in message
    assert 'File "' not in message
    logged = [record.getMessage() for record in caplog.records]
    assert any("mine-7" in line for line in logged) is (status == 500), logged
    after = client.get("/good")
    assert after.status_code == 200 and after.json()["id"] == after.headers["x-request-id"]
    assert after.headers["x-request-id"] != "mine-7"
    assert connection_of(client) is before


@pytest.mark.parametrize("path", ["/events/2", "/vllm-events"])
def test_streams_end_with_an_event(client, path, caplog):
    before = connection_of(client)
    with client.stream("GET", path) as answer:
        name = answer.headers["x-request-id"]
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-2] == "event: error"
    error = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert error["code"] == 500 and "RuntimeError: " in error["message"]
    assert any(name in record.getMessage() for record in caplog.records)
    assert client.get("/good").status_code == 200
    assert connection_of(client) is before


def test_what_has_begun_stays_a_stream(client):
    answer = client.get("/refused-in-a-stream/2")
    assert answer.status_code == 200
    events = [line for line in answer.text.split("\n\n") if line]
    assert len(events) == 4 and "steps=0" in events[2] and events[3] == "data: [DONE]"


def test_half_a_file_does_not_pass_for_a_whole_one(client):
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/half-a-file")
    assert client.get("/good").status_code == 200


@pytest.mark.parametrize("given", ["", "a b", "x" * 129])
def test_ids_that_cannot_be_used(client, given):
    name = client.get("/good", headers={"X-Request-Id": given}).headers["x-request-id"]
    assert name != given and len(name) == 32


@pytest.mark.parametrize(("error", "is_shown"), [(EngineDeadError(), False), (KeyError(), True)])
def test_an_orderly_end_is_no_failure(error, is_shown):
    """What vLLM's reader of outputs logs when the engine is gone that it reads from."""
    shown = []
    logger = logging.Logger("vllm.a_test")  # of no other's handlers
    logger.addFilter(operating._is_no_orderly_end)
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.error("output_handler failed", exc_info=error)
    logger.error("something else")
    assert shown == (["output_handler failed"] if is_shown else []) + ["something else"]
