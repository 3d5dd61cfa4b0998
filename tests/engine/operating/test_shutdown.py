"""SIGTERM, as a container runtime sends it: to the server alone, with requests in the middle."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from helpers.prometheus import Metrics
from helpers.server import DYNIN_SERVE, serve

from vllm_dynin.entrypoints.stand_in import write_stand_in


def process_of(server) -> psutil.Process:
    """The process that a container would have as its first."""
    port = server.url.rsplit(":", 1)[1]
    return next(
        process
        for process in psutil.process_iter(["cmdline"])
        if port in (process.info["cmdline"] or ())
    )


def slow_request(server, num_steps, *, stream=False):
    body = {"prompt": "a cat", "num_inference_steps": num_steps, "stream": stream}
    return httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=200)


def wait_until_running(server, number):
    with server.client() as http:
        end = time.monotonic() + 60
        while Metrics(http)("vllm:num_requests_running") < number:
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.mark.parametrize(("seconds", "num_steps"), [("110", 40), ("0", 8_000)])
def test_sigterm(tmp_path, seconds, num_steps):
    """In time: requests that run are finished. Out of time: they are told so, and do not hang."""
    folder = write_stand_in(tmp_path / "dynin")
    flags = ("--shutdown-timeout", seconds, "--max-model-len", "1024")
    with (
        serve(folder, tmp_path / "log.txt", *flags, program=DYNIN_SERVE) as server,
        ThreadPoolExecutor(2) as clients,
    ):
        process = process_of(server)
        whole = clients.submit(slow_request, server, num_steps)
        streamed = clients.submit(slow_request, server, num_steps, stream=True)
        wait_until_running(server, 2)
        os.kill(process.pid, signal.SIGTERM)
        if seconds != "0":
            refusals = [late(server, "/health"), late(server, "/v1/models")]
        whole, streamed = whole.result(), streamed.result()
        process.wait(120)
    if seconds != "0":
        assert "Traceback" not in (tmp_path / "log.txt").read_text()
        assert whole.status_code == 200, whole.text
        assert len(whole.json()["data"]) == 1
        assert "image_generation.completed" in streamed.text
        for refusal in refusals:
            assert refusal.status_code == 503
            assert refusal.headers["retry-after"]
            assert "shutting down" in refusal.json()["error"]["message"]
    else:
        assert whole.status_code == 503, whole.text
        assert "shut down before the answer" in whole.json()["error"]["message"]
        assert "shut down before the answer" in streamed.text


def late(server, route):
    """A request that comes after SIGTERM, as soon as the server knows of it."""
    end = time.monotonic() + 20
    while True:
        answer = httpx.get(server.url + route, timeout=30)
        if answer.status_code == 503 or time.monotonic() > end:
            return answer
        time.sleep(0.02)
