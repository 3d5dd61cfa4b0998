"""Media by URL: what is reached and what is refused, with real servers on the loopback."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

pytest.importorskip("vllm")
from vllm.connections import MediaDownloadSizeExceededError
from vllm.exceptions import VLLMValidationError

from vllm_dynin.entrypoints.media_connector import GuardedMediaConnector
from vllm_dynin.entrypoints.public_connection import MAX_REDIRECTS, PublicConnection, is_public

PRIVATE = [
    *("127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
    *("0.0.0.0", "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1"),
    *("64:ff9b::a00:1", "2002:a00:1::1"),
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address):
    assert is_public(address)


def png(side=16):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.paths.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        if self.path == "/png":
            self.wfile.write(png())
        elif self.path == "/endless":
            self._write_for(5, b"x" * 65536)
        elif self.path == "/dribble":
            self._write_for(10, b"x", pause=0.1)

    def _write_for(self, seconds, data, pause=0.0):
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                self.wfile.write(data)
                self.wfile.flush()
                time.sleep(pause)
        except OSError:
            self.server.is_cut = True

    def log_message(self, *args):
        pass


@contextmanager
def web():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.paths, server.is_cut = [], False
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def server():
    with web() as server:
        yield server


def fetch(url, hosts=(), **options):
    return asyncio.run(PublicConnection(hosts).async_get_bytes(url, **options))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "127.1", "2130706433"])
def test_the_loopback_is_refused_under_each_of_its_names(server, host):
    with pytest.raises(VLLMValidationError, match=r"not public|not a canonical"):
        fetch(f"http://{host}:{server.server_port}/png")
    assert server.paths == []


def test_a_named_host_may_be_private(server):
    url = f"http://127.0.0.1:{server.server_port}/png"
    assert fetch(url, ["127.0.0.1"]) == png()
    assert PublicConnection(["127.0.0.1"]).get_bytes(url) == png()


def test_where_hosts_are_named_no_other_will_do(server):
    with pytest.raises(VLLMValidationError, match="allowed-media-domains"):
        fetch(f"http://localhost:{server.server_port}/png", ["127.0.0.1"])


@pytest.mark.parametrize(
    "target", ["http://localhost:1/png", "http://169.254.169.254/", "ftp://a/"]
)
def test_a_redirect_is_held_to_the_rules(server, target):
    with pytest.raises(VLLMValidationError, match="refused"):
        fetch(f"http://127.0.0.1:{server.server_port}/to/{target}", ["127.0.0.1"])
    assert len(server.paths) == 1


def test_a_redirect_to_a_file(server):
    with pytest.raises(VLLMValidationError, match="scheme 'file'"):
        fetch(f"http://127.0.0.1:{server.server_port}/to/file:///etc/hostname", ["127.0.0.1"])


def test_an_allowed_redirect(server):
    port = server.server_port
    url = f"http://127.0.0.1:{port}/to/http://127.0.0.1:{port}/png"
    assert fetch(url, ["127.0.0.1"]) == png()


def test_redirects_without_end(server):
    port = server.server_port
    path = "/to/" * (MAX_REDIRECTS + 1) + "/png"
    with pytest.raises(VLLMValidationError, match=f"more than {MAX_REDIRECTS}"):
        fetch(f"http://127.0.0.1:{port}{path}", ["127.0.0.1"])
    assert fetch(f"http://127.0.0.1:{port}{path[4:]}", ["127.0.0.1"]) == png()


def test_an_endless_answer_is_cut(server):
    with pytest.raises(MediaDownloadSizeExceededError):
        fetch(f"http://127.0.0.1:{server.server_port}/endless", ["127.0.0.1"], max_bytes=1 << 20)


def test_a_dribbling_answer_is_cut(server):
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        fetch(f"http://127.0.0.1:{server.server_port}/dribble", ["127.0.0.1"], timeout=0.5)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "/etc/passwd",
        "ftp://a/b",
        "gopher://a",
        "",
        "a:b",
    ],
)
def test_other_schemes(url):
    with pytest.raises(VLLMValidationError, match="must be one of http, https, data"):
        asyncio.run(GuardedMediaConnector().fetch_image_async(url))


def test_the_connector_fetches_an_image(server):
    connector = GuardedMediaConnector(allowed_media_domains=["127.0.0.1"])
    url = f"http://127.0.0.1:{server.server_port}/png"
    image = asyncio.run(connector.fetch_image_async(url)).media
    assert image.getpixel((0, 0)) == (200, 30, 30)


def test_the_connector_refuses_the_loopback(server):
    url = f"http://127.0.0.1:{server.server_port}/png"
    for fetch_image in (
        lambda: asyncio.run(GuardedMediaConnector().fetch_image_async(url)),
        lambda: GuardedMediaConnector().fetch_image(url),
    ):
        with pytest.raises(VLLMValidationError, match="not public"):
            fetch_image()
