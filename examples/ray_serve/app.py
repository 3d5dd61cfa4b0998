"""Dynin-Omni behind Ray Serve: several replicas, each a `vllm-dynin serve` of its own.

    pip install ".[vllm]" "ray[serve]>=2.48" httpx      # in a checkout
    DYNIN_MODEL=snu-aidas/Dynin-Omni serve run examples.ray_serve.app:app

Each replica starts a server on its node and hands requests and answers through unchanged, streams
included, so every route, limit and metric is that of the server. vLLM's own Ray executor
(`--distributed-executor-backend ray`, for a model over several nodes) is another matter.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator

try:
    from ray import serve
except ImportError as error:
    raise ImportError(
        'this example needs Ray Serve, which is not installed: pip install "ray[serve]>=2.48"'
    ) from error

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

MODEL = os.environ.get("DYNIN_MODEL", "snu-aidas/Dynin-Omni")
START_SECONDS = 1_800
DRAIN_SECONDS = 60

# Headers of one connection, which the other one has its own of.
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "host", "content-length"}

api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


@serve.deployment(
    num_replicas=1,
    ray_actor_options={"num_gpus": 1, "num_cpus": 8},
    max_ongoing_requests=64,
    health_check_period_s=15,
    graceful_shutdown_timeout_s=DRAIN_SECONDS + 15,
)
@serve.ingress(api)
class Dynin:
    """One replica: a server, and the way to it."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        self._client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self._port}",
            timeout=httpx.Timeout(None, connect=5),
            limits=httpx.Limits(max_connections=None),
        )
        self._server: asyncio.subprocess.Process | None = None
        self._starting: asyncio.Task[None] | None = None

    def _started(self) -> asyncio.Task[None]:
        """The server's start, begun by whoever comes first; Ray's event loop runs by then."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return self._starting

    async def _start(self) -> None:
        command = [sys.executable, "-m", "vllm_dynin.entrypoints.cli", "serve", MODEL]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--shutdown-timeout", str(DRAIN_SECONDS)]
        self._server = await asyncio.create_subprocess_exec(*command)
        for _ in range(START_SECONDS):
            if self._server.returncode is not None:
                raise RuntimeError(f"the server ended with {self._server.returncode}; see its log")
            try:
                if (await self._client.get("/health")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(1)
        raise RuntimeError(f"the server was not ready in {START_SECONDS} s")

    async def check_health(self) -> None:
        """Ray calls this; an exception has the replica replaced."""
        starting = self._started()
        if starting.done():
            starting.result()
            (await self._client.get("/health")).raise_for_status()

    async def __del__(self) -> None:
        """Ray calls this when the replica's requests are done."""
        if self._server is not None and self._server.returncode is None:
            self._server.terminate()
            await self._server.wait()

    @api.api_route("/{path:path}", methods=["GET", "POST", "OPTIONS"])
    async def forward(self, request: Request, path: str) -> StreamingResponse:
        """Hand a request on; the body is not held here, and neither is the answer."""
        await asyncio.shield(self._started())
        sent = self._client.build_request(
            request.method,
            httpx.URL(path="/" + path, query=request.url.query.encode()),
            headers=[(k, v) for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP],
            content=request.stream() if request.method == "POST" else None,
        )
        answer = await self._client.send(sent, stream=True)

        async def body() -> AsyncIterator[bytes]:
            try:
                async for chunk in answer.aiter_raw():
                    yield chunk
            finally:  # also when the client has gone: the server then drops the request
                await answer.aclose()

        headers = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP}
        return StreamingResponse(body(), status_code=answer.status_code, headers=headers)


app = Dynin.bind()  # type: ignore[attr-defined]
