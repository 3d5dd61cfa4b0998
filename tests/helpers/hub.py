"""A hub on this machine: what `huggingface_hub` asks of the real one, over folders."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LFS = (".safetensors", ".bin", ".ckpt", ".pth", ".npy")


def git_hash(data: bytes) -> str:
    """As git names a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """Repositories by name, and the files that were asked for.

    Args:
        repositories: name → folder.
    """

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.asked: list[str] = []
        self.damaged: set[str] = set()
        """Files that arrive with one byte changed."""

    def files(self, name: str) -> dict[str, Path]:
        """Files of a repository by path."""
        folder = self.repositories[name]
        return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}

    def info(self, name: str) -> dict[str, object]:
        """What the hub says of a repository, with the hashes of its files."""
        siblings = []
        for path, file in self.files(name).items():
            data = file.read_bytes()
            entry: dict[str, object] = {"rfilename": path, "size": len(data)}
            entry["blobId"] = git_hash(data)
            if path.endswith(_LFS):
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {"id": name, "modelId": name, "sha": COMMIT, "private": False, "siblings": siblings}


@contextmanager
def serve_hub(hub: Hub) -> Iterator[str]:
    """The hub's address, as HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in hub.repositories:
                body = json.dumps(hub.info("/".join(parts[2:4]))).encode()
                self._send(200, body, {"Content-Type": "application/json"})
                return
            name, path = "/".join(parts[:2]), "/".join(parts[4:])
            if name not in hub.repositories or path not in hub.files(name):
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            data = hub.files(name)[path].read_bytes()
            if path in hub.damaged:
                data = data[:-1] + bytes([data[-1] ^ 1])
            if self.command == "GET":
                hub.asked.append(f"{name}/{path}")
            etag = f'"{git_hash(hub.files(name)[path].read_bytes())}"'
            self._send(200, data, {"ETag": etag, "X-Repo-Commit": COMMIT})

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
