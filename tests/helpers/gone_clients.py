"""Clients that go away in the middle of an answer, and what the server's metrics say then."""

from __future__ import annotations

import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

from helpers.server import Server

_SECONDS = 30


def gauge(server: Server, name: str) -> float:
    """Sum of a metric of the server over its labels."""
    with server.client() as http:
        lines = http.get("/metrics").text.splitlines()
    heads = (f"{name}{{", f"{name} ")
    values = [line.rsplit(" ", 1)[1] for line in lines if line.startswith(heads)]
    assert values, f"the server reports no {name}"
    return sum(map(float, values))


def load(server: Server) -> tuple[float, float]:
    """Requests in the engine, running or waiting, and the share of its KV cache in use."""
    waiting = gauge(server, "vllm:num_requests_waiting")
    running = gauge(server, "vllm:num_requests_running")
    return running + waiting, gauge(server, "vllm:kv_cache_usage_perc")


def leave_while_it_runs(server: Server, route: str, body: dict[str, Any]) -> None:
    """Send a request, and hang up as soon as it runs and holds KV blocks.

    Args:
        server: is idle.
        route: of the request.
        body: of one that takes seconds.
    """
    assert load(server) == (0, 0)
    data = json.dumps(body).encode()
    place = urlsplit(server.url)
    head = (
        f"POST {route} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection((place.hostname, place.port)) as client:
        client.sendall(head.encode() + data)
        wait_for(lambda: min(load(server)) > 0, "it never ran")


def wait_until_idle(server: Server) -> None:
    """Until the engine holds no request and no KV block."""
    wait_for(lambda: load(server) == (0, 0), "something is still held")


def wait_for(condition: Any, complaint: str) -> None:
    """Wait until something holds."""
    end = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < end, f"{complaint} after {_SECONDS} s"
        time.sleep(0.02)
