"""The engine core dies under requests: everybody is told, streams too, and the server ends."""

import json
import os
import re
import signal
import threading
import time

import httpx
import pytest
from helpers.server import DYNIN_SERVE, serve

LONG = {"size": "80x80", "num_inference_steps": 2_000, "seed": 1}
SECONDS = 30
"""For everybody to be told. It takes one or two; the machine may be busy."""


def image(**more):
    return "/v1/images/generations", {"prompt": "a cat"} | LONG | more


def chat(**more):
    body = {"messages": [{"role": "user", "content": "a cat"}], "max_tokens": 400}
    return "/v1/chat/completions", body | more


ASKED = {
    "image": image(),
    "streamed image": image(stream=True),
    "streamed image with partial ones": image(stream=True, partial_images=2),
    "chat image": chat(modalities=["image"], **LONG),
    "streamed chat image": chat(modalities=["image"], stream=True, partial_images=1, **LONG),
    "text": chat(),
    "streamed text": chat(stream=True),
    "speech": (
        "/v1/audio/speech",
        {"input": "a cat", "max_tokens": 512, "num_inference_steps": 512, "stream": True},
    ),
}


@pytest.mark.timeout(300)
def test_everybody_is_told(stand_in, tmp_path):
    sizes = ("--max-model-len", "2048", "--num-gpu-blocks-override", "512", "--max-num-seqs", "16")
    with serve(stand_in, tmp_path / "log.txt", *sizes, program=DYNIN_SERVE) as server:
        told: dict[str, float] = {}
        answers: dict[str, tuple[int, str]] = {}

        def ask(name: str) -> None:
            route, body = ASKED[name]
            with (
                httpx.Client(base_url=server.url, timeout=SECONDS + 60) as http,
                http.stream("POST", route, json=body) as answer,
            ):
                text = answer.read().decode()
                told[name] = time.monotonic()
                answers[name] = answer.status_code, text

        threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in ASKED]
        for thread in threads:
            thread.start()
        _wait_until_running(server, len(ASKED))
        pid = int(re.search(r"EngineCore pid=(\d+)", server.log.read_text())[1])
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        for thread in threads:
            thread.join(max(0.0, killed + SECONDS - time.monotonic()))
        assert told.keys() == ASKED.keys(), f"never told: {ASKED.keys() - told.keys()}"
        for name, (status, text) in answers.items():
            if status == 200:
                last = [line for line in text.splitlines() if line.startswith("data: {")][-1]
                error = json.loads(last.removeprefix("data: "))["error"]
            else:
                error = json.loads(text)["error"]
            assert error["code"] == 500 and error["message"], (name, text)
        with pytest.raises(httpx.TransportError):  # a supervisor sees that it has ended
            while time.monotonic() < killed + SECONDS:
                httpx.get(f"{server.url}/health", timeout=5)
                time.sleep(0.1)


def _wait_until_running(server, count: int) -> None:
    """Until the engine has all of them, or for a while where the machine is slow."""
    start = time.monotonic()
    while time.monotonic() < start + 60:
        text = httpx.get(f"{server.url}/metrics", timeout=30).text
        found = re.findall(
            r"^vllm:num_requests_(running|waiting)\{[^}]*\} (\S+)", text, re.MULTILINE
        )
        sums = {name: float(value) for name, value in found}
        is_late = time.monotonic() > start + 15
        if sum(sums.values()) >= count or (is_late and sums.get("running", 0) > 0):
            return
        time.sleep(0.1)
    raise AssertionError("the requests did not start")
