"""What is sent to hurt a server, over a real socket: refused, in bounded memory, and survived."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
import wave
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from .conftest import KEY

CHAT = "/v1/chat/completions"
MIB = 2**20


@pytest.fixture(autouse=True)
def survived(http: httpx.Client) -> Iterator[None]:
    """After each attack a good request is answered."""
    yield
    answer = http.post(CHAT, json=chat("hello"))
    assert answer.status_code == 200, answer.text


def chat(content, **more):
    message = {"role": "user", "content": content}
    return {"model": "tiny", "messages": [message], "max_tokens": 16, "temperature": 0} | more


def part(kind, url):
    return [{"type": f"{kind}_url", f"{kind}_url": {"url": url}}, {"type": "text", "text": "what?"}]


def refused(answer, *words, statuses=range(400, 500)):
    assert answer.status_code in statuses, (answer.status_code, answer.text[:500])
    for word in words:
        assert word in answer.text, answer.text[:500]


class Canary(BaseHTTPRequestHandler):
    """A service in the private network: nobody may get here through the server."""

    def do_GET(self):
        self.server.visits.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"secret")

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def canary():
    with ThreadingHTTPServer(("127.0.0.1", 0), Canary) as server:
        server.visits = []
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("kind", ["image", "video", "audio"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"])
def test_private_addresses(http, canary, kind, host):
    url = f"http://{host}:{canary.server_port}/latest/meta-data"
    refused(http.post(CHAT, json=chat(part(kind, url))), "not public")
    assert canary.visits == []


@pytest.mark.parametrize("kind", ["image", "video", "audio"])
@pytest.mark.parametrize("url", ["file:///etc/passwd", "/etc/passwd", "ftp://example.org/a", "a"])
def test_files_and_other_schemes(http, kind, url):
    answer = http.post(CHAT, json=chat(part(kind, url)))
    refused(answer, "must be one of http, https, data")
    assert "root:" not in answer.text


def png_bomb(side):
    """A black picture of `side`² pixels in a few kilobytes."""

    def chunk(name, data):
        crc = zlib.crc32(name + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + name + data + crc

    size = side.to_bytes(4, "big")
    packer = zlib.compressobj(9)
    rows = [packer.compress(bytes(side // 8 + 1)) for _ in range(side)] + [packer.flush()]
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + size + b"\x01\x00\x00\x00\x00")
    return head + chunk(b"IDAT", b"".join(rows)) + chunk(b"IEND", b"")


def data_url(mime, data):
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def memory(server):
    """Resident bytes of the process that answers HTTP."""
    port = server.url.rsplit(":", 1)[1]
    for process in psutil.process_iter(["cmdline"]):
        if port in (process.info["cmdline"] or ()):
            return process.memory_info().rss
    raise AssertionError("no such process")


class Peak:
    """Growth of the server's memory in a block."""

    def __init__(self, server):
        self._server, self._done = server, threading.Event()

    def __enter__(self):
        self._start = self._most = memory(self._server)
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._done.wait(0.05):
            self._most = max(self._most, memory(self._server))

    def __exit__(self, *args):
        self._done.set()
        self._thread.join()

    @property
    def growth(self):
        return self._most - self._start


def test_picture_bombs(operated, http):
    bomb = png_bomb(16_000)
    assert len(bomb) < 100_000  # 256 million pixels, 768 MB as RGB
    with Peak(operated) as peak:
        refused(
            http.post(CHAT, json=chat(part("image", data_url("image/png", bomb)))),
            "max_source_pixels",
        )
        form = {"prompt": "blue", "num_inference_steps": "2"}
        refused(
            http.post("/v1/images/edits", data=form, files={"image": bomb}), "max_source_pixels"
        )
        files = {"image": picture(), "mask": bomb}
        refused(http.post("/v1/images/edits", data=form, files=files), "max_source_pixels")
    assert peak.growth < 100 * MIB


def picture(side=64):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (30, 90, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def flac_bomb(seconds):
    """Silence: an hour of it is some hundred kilobytes."""
    import numpy as np
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(seconds * 8000, np.int16), 8000, format="FLAC")
    return buffer.getvalue()


def test_sound_bombs(operated, http):
    bomb = flac_bomb(3600)
    assert len(bomb) < MIB
    with Peak(operated) as peak:
        answer = http.post("/v1/audio/transcriptions", files={"file": ("a.flac", bomb)})
        refused(answer, "max_seconds")
        refused(http.post(CHAT, json=chat(part("audio", data_url("audio/flac", bomb)))), "duration")
    assert peak.growth < 150 * MIB


def test_a_recording_whose_header_lies(http):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(3200))
    data = bytearray(buffer.getvalue())
    data[40:44] = (2**31 - 1).to_bytes(4, "little")  # 18 hours of samples, it says
    answer = http.post("/v1/audio/transcriptions", files={"file": ("a.wav", bytes(data))})
    assert answer.status_code < 500, answer.text


@pytest.mark.parametrize("num_frames", [-1, 0, 100_000])
def test_all_frames_of_a_video(http, num_frames):
    url = data_url("video/mp4", b"not looked at")
    body = chat(part("video", url), media_io_kwargs={"video": {"num_frames": num_frames}})
    refused(http.post(CHAT, json=body))


def test_bodies_over_the_limit(operated, http):
    """Twenty clients at once with 40 MB each, by stated length and in chunks."""
    pieces = [b"x" * MIB] * 40

    def send(index):
        content = b"".join(pieces) if index % 2 else iter(pieces)
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        return httpx.post(operated.url + CHAT, content=content, headers=headers, timeout=120)

    with Peak(operated) as peak, ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(send, range(20)))
    assert {answer.status_code for answer in answers} <= {413, 503}
    # 64 MiB for all bodies together, read twice over by the parser at most.
    assert peak.growth < 200 * MIB


def test_slow_uploads(operated, http):
    """Fifty clients that send a byte now and then: cut after the grace, others are served."""
    host, port = operated.url.removeprefix("http://").split(":")
    head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n"
    head += "content-type: application/json\r\ncontent-length: 100000\r\n\r\n{"
    clients = [socket.create_connection((host, int(port)), timeout=60) for _ in range(50)]
    try:
        started = time.monotonic()
        for client in clients:
            client.sendall(head.encode())
        assert http.post(CHAT, json=chat("hello")).status_code == 200
        heads = [client.recv(4096) for client in clients]
        assert 3 < time.monotonic() - started < 30
    finally:
        for client in clients:
            client.close()
    assert {data[:12] for data in heads} == {b"HTTP/1.1 408"}


TOO_MUCH = {
    "steps": (CHAT, chat("a", vllm_xargs={"dynin_steps": 10_000})),
    "steps of an image": ("/v1/images/generations", {"prompt": "a", "num_inference_steps": 10_000}),
    "steps of speech": ("/v1/audio/speech", {"input": "a", "num_inference_steps": 10_000}),
    "n": (CHAT, chat("a", n=5_000)),
    "n of completions": ("/v1/completions", {"model": "tiny", "prompt": "a", "n": 5_000}),
    "n of images": ("/v1/images/generations", {"prompt": "a", "n": 5_000}),
    "prompts": ("/v1/completions", {"model": "tiny", "prompt": ["a"] * 5_000}),
    "tokens": (CHAT, chat("a", max_tokens=10**9)),
    "a prompt": (CHAT, chat("word " * 200_000)),
    "an image": ("/v1/images/generations", {"prompt": "a", "size": "8192x8192"}),
    "units": ("/v1/audio/speech", {"input": "a", "max_tokens": 10**9}),
    "a number": (CHAT, chat("a", seed=10**40)),
    "logprobs": (CHAT, chat("a", logprobs=True, top_logprobs=10**6)),
    "stop strings": (CHAT, chat("a", stop=["a"] * 10_000)),
    "options": (CHAT, chat("a", vllm_xargs={f"dynin_{i}": i for i in range(10_000)})),
}


@pytest.mark.parametrize(("route", "body"), TOO_MUCH.values(), ids=list(TOO_MUCH))
def test_too_much_of_something(http, route, body):
    refused(http.post(route, json=body))


@pytest.mark.parametrize("route", [CHAT, "/v1/images/generations", "/v1/audio/speech"])
@pytest.mark.parametrize(
    "content",
    ["[" * 200_000, '{"a":' * 100_000, '{"model": "tiny", "messages": NaN}', "\x00", "9" * 10_000],
    ids=["brackets", "objects", "nan", "nul", "digits"],
)
def test_json_that_is_sent_to_hurt(http, route, content):
    refused(http.post(route, content=content, headers={"content-type": "application/json"}))


@pytest.mark.parametrize("name", ["model_path", "config", "trust_remote_code", "tokenizer"])
def test_nothing_names_a_path(http, name, tmp_path):
    """No request can have the server open a file or import code."""
    secret = Path(tmp_path, "secret.txt")
    secret.write_text("0xSECRET")
    for route, body in {
        "/v1/images/generations": {"prompt": "a", name: str(secret)},
        "/v1/audio/speech": {"input": "a", name: str(secret)},
    }.items():
        refused(http.post(route, json=body), name)
    answer = http.post(CHAT, json=chat("a", vllm_xargs={f"dynin_{name}": str(secret)}))
    refused(answer, name)
    assert "0xSECRET" not in answer.text


def test_a_template_of_the_client(http):
    body = chat("a", chat_template="{{ cycler.__init__.__globals__.os.popen('id').read() }}")
    answer = http.post(CHAT, json=body)
    refused(answer)
    assert "uid=" not in answer.text


def test_forms_with_thousands_of_parts(http):
    files = [("image", (f"{index}.png", b"x")) for index in range(5_000)]
    refused(http.post("/v1/images/edits", data={"prompt": "a"}, files=files))


def test_clients_that_leave_in_the_middle(operated, http):
    """Half a body, then gone: nothing stays behind."""
    host, port = operated.url.removeprefix("http://").split(":")
    head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n"
    head += "content-type: application/json\r\ncontent-length: 8000000\r\n\r\n"
    for _ in range(30):
        with socket.create_connection((host, int(port)), timeout=60) as client:
            client.sendall(head.encode() + b"x" * 4_000_000)
    # All of the budget for bodies (64 MiB) is there again: four times 15 MB at once.
    body = json.dumps(chat("a") | {"user": "x" * 15_000_000})
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}

    def send(_):
        return httpx.post(operated.url + CHAT, content=body, headers=headers, timeout=120)

    with ThreadPoolExecutor(4) as clients:
        assert {answer.status_code for answer in clients.map(send, range(4))} == {200}
