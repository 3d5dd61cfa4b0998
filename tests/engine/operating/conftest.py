"""One server as an operator would start it, with everything on: page, key, origins, traces."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from helpers.server import DYNIN_SERVE, Server, serve

from vllm_dynin.entrypoints.stand_in import write_stand_in

KEY = "a-key"
ORIGIN = "https://allowed.example"


class Collector(ThreadingHTTPServer):
    """Takes what is exported over OTLP/HTTP."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Collect)
        self.bodies: list[bytes] = []


class _Collect(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, args=(0.05,), daemon=True).start()
        yield collector
        collector.shutdown()


@pytest.fixture(scope="session")
def operated(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = write_stand_in(tmp_path_factory.mktemp("operated") / "dynin")
    flags = [
        *("--max-model-len", "2048", "--num-gpu-blocks-override", "512", "--max-num-seqs", "16"),
        *("--ui", "--api-key", KEY, "--allowed-origins", f'["{ORIGIN}"]'),
        *("--otlp-traces-endpoint", f"http://127.0.0.1:{collector.server_port}/v1/traces"),
    ]
    variables = {
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "200",  # ms
        "DYNIN_BODY_SECONDS": "4",
        "DYNIN_MAX_BODY_MB": "16",
        "DYNIN_MAX_TOTAL_BODY_MB": "64",
    }
    log: Path = tmp_path_factory.mktemp("operated_log") / "log.txt"
    with serve(folder, log, *flags, program=DYNIN_SERVE, **variables) as server:
        yield server


@pytest.fixture
def http(operated: Server) -> Iterator[httpx.Client]:
    """A client with the key."""
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=operated.url, headers=headers, timeout=120) as client:
        yield client
