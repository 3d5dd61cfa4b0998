"""`vllm serve` as its users start it: a process of its own, reached over HTTP on the loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from helpers.engines import ENVIRONMENT

_START_SECONDS = 600  # one machine runs many things at once; 20 s alone


@dataclass(frozen=True)
class Server:
    """A running server.

    Args:
        url: without a slash at the end.
        model: the name requests must give.
        log: file with everything it printed.
        group: id of the group that its processes are.
    """

    url: str
    model: str
    log: Path
    group: int

    def client(self) -> httpx.Client:
        """A plain HTTP client for it."""
        return httpx.Client(base_url=self.url, timeout=60)


VLLM_SERVE = ("-m", "vllm.entrypoints.cli.main", "serve")
DYNIN_SERVE = ("-m", "vllm_dynin.entrypoints.cli", "serve")
SIZES = (
    *("--max-model-len", "512", "--max-num-seqs", "4", "--block-size", "32", "--enforce-eager"),
    *("--kv-cache-memory-bytes", str(1 << 26), "--num-gpu-blocks-override", "80"),
)


@contextmanager
def serve(
    folder: Path,
    log: Path,
    *flags: str,
    program: tuple[str, ...] = VLLM_SERVE,
    sizes: tuple[str, ...] = SIZES,
    **variables: str,
) -> Iterator[Server]:
    """Serve a checkpoint until the block is left.

    Args:
        folder: of the checkpoint.
        log: gets all output.
        flags: of `vllm serve`; those that are set here too hold.
        sizes: flags about memory and compilation.
        program: `VLLM_SERVE`, or `DYNIN_SERVE` for our routes beside vLLM's.
        variables: of the environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, *program, str(folder)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny"),
        *("--dtype", "float32", *sizes, *flags),
    ]
    environment = os.environ | ENVIRONMENT | variables
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    server = Server(f"http://127.0.0.1:{port}", "tiny", log, process.pid)
    try:
        _wait_until_ready(server, process)
        yield server
    finally:
        with suppress(ProcessLookupError):  # it has ended already
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"vllm serve ended with {process.returncode}:\n{_tail(server.log)}")
        try:
            if httpx.get(f"{server.url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"vllm serve was not ready in {_START_SECONDS} s:\n{_tail(server.log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-6000:]
