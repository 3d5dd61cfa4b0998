"""Latency and throughput of the HTTP routes, by direction and concurrency, over a real socket.

    python benchmarks/bench_routes.py                   starts a server on random weights
    python benchmarks/bench_routes.py --url http://host:8000 --requests 64

Each client sends its next request when it has the whole answer to the last one. Latency is from
the first byte sent to the last byte received; percentiles are of all requests of a row. A request
that is not answered with 200 counts as failed and is left out of the percentiles.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from vllm_dynin.checkpoint import load_config
from vllm_dynin.codec_runner import Sound
from vllm_dynin.kv_memory import kv_cache_bytes

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One direction at one concurrency. Latencies in seconds."""

    direction: str
    concurrency: int
    requests: int
    failed: int
    requests_per_second: float
    p50: float
    p90: float
    p99: float


def picture() -> bytes:
    x = np.linspace(0, 255, 64, dtype=np.uint8)
    array = np.stack(np.broadcast_arrays(x[None], x[:, None], np.uint8(90)), -1)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def recording() -> bytes:
    seconds = np.arange(16_000) / 16_000
    tone = np.sin(2 * np.pi * (200 + 300 * seconds) * seconds) * np.sin(8 * np.pi * seconds)
    return Sound((0.5 * tone).astype(np.float32), 16_000).to_bytes()


def directions(model: str, tokens: int, steps: int) -> dict[str, dict[str, object]]:
    """Arguments of `httpx.AsyncClient.post` for a request of each direction."""
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    image = {"type": "image_url", "image_url": {"url": url}}
    text = {"type": "text", "text": "What do you see?"}
    chat = {"model": model, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}

    def ask(*content: object) -> dict[str, object]:
        return {"url": CHAT, "json": chat | {"messages": [{"role": "user", "content": content}]}}

    form = {"model": model, "prompt": "make it blue", "num_inference_steps": str(steps)}
    speak = {"model": model, "input": "good morning", "response_format": "wav", "seed": 2}
    speak |= {"max_tokens": tokens, "num_inference_steps": tokens // 2}
    create = {"model": model, "prompt": "a red chair", "num_inference_steps": steps}
    listen = {"model": model, "max_completion_tokens": str(tokens)}
    return {
        "text to text": ask(text),
        "image to text": ask(image, text),
        "text to image": {"url": "/v1/images/generations", "json": create},
        "image to image": {
            "url": "/v1/images/edits",
            "data": form,
            "files": {"image": ("a.png", picture(), "image/png")},
        },
        "text to speech": {"url": "/v1/audio/speech", "json": speak},
        "speech to text": {
            "url": "/v1/audio/transcriptions",
            "data": listen,
            "files": {"file": ("a.wav", recording(), "audio/wav")},
        },
    }


async def measure(
    post: Callable[[], Awaitable[httpx.Response]], name: str, concurrency: int, number: int
) -> Row:
    latencies: list[float] = []
    left, failed = number, 0

    async def client() -> None:
        nonlocal left, failed
        while left > 0:
            left -= 1
            started = time.perf_counter()
            answer = await post()
            if answer.status_code == 200:
                latencies.append(time.perf_counter() - started)
            else:
                failed += 1
                print(f"  {name}: {answer.status_code} {answer.text[:200]}", file=sys.stderr)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    seconds = time.perf_counter() - started
    p50, p90, p99 = np.percentile(latencies or [np.nan], [50, 90, 99])
    return Row(
        direction=name,
        concurrency=concurrency,
        requests=number,
        failed=failed,
        requests_per_second=len(latencies) / seconds,
        p50=float(p50),
        p90=float(p90),
        p99=float(p99),
    )


async def run(url: str, options: argparse.Namespace) -> list[Row]:
    headers = {"authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    limits = httpx.Limits(max_connections=None)
    rows = []
    print("| direction | clients | requests | failed | requests/s | p50 (s) | p90 (s) | p99 (s) |")
    print("|---|---|---|---|---|---|---|---|")
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=600, limits=limits
    ) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        for name, request in directions(model, options.tokens, options.steps).items():
            if options.only and options.only not in name:
                continue

            def post(request: dict[str, object] = request) -> Awaitable[httpx.Response]:
                return client.post(**request)  # type: ignore[arg-type]

            await post()  # loads a codec, fills a cache
            for concurrency in options.concurrency:
                number = max(options.requests, concurrency)
                row = await measure(post, name, concurrency, number)
                rows.append(row)
                print(
                    f"| {name} | {concurrency} | {number} | {row.failed} | "
                    f"{row.requests_per_second:.2f} | {row.p50:.2f} | {row.p90:.2f} | "
                    f"{row.p99:.2f} |",
                    flush=True,
                )
    return rows


@contextmanager
def own_server(port: int) -> Iterator[str]:
    """`vllm-dynin serve` on random weights of toy size."""
    from vllm_dynin.entrypoints.stand_in import write_stand_in

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_stand_in(Path(folder) / "dynin")
        command = [sys.executable, "-m", "vllm_dynin.entrypoints.cli", "serve", str(checkpoint)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
        command += ["--max-model-len", "2048", "--max-num-seqs", "32", "--block-size", "32"]
        memory = kv_cache_bytes(
            load_config(checkpoint),
            num_requests=32,
            request_rows=2048,
            step_rows=8192,
            element_bytes=4,
        )
        command += ["--enforce-eager", "--kv-cache-memory-bytes", str(memory)]
        command += ["--max-num-batched-tokens", "8192"]
        variables = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        server = subprocess.Popen(command, env=os.environ | variables)
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                if server.poll() is not None:
                    raise SystemExit(f"the server ended with {server.returncode}")
                try:
                    if httpx.get(f"{url}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.5)
            yield url
        finally:
            server.terminate()
            server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", help="of a running server; by default one is started")
    parser.add_argument("--port", type=int, default=8377, help="of the server that is started")
    parser.add_argument("--api-key")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=32, help="for each row, at least")
    parser.add_argument("--tokens", type=int, default=32, help="of texts, and units of speech")
    parser.add_argument("--steps", type=int, default=16, help="denoising steps of images")
    parser.add_argument("--only", help="directions with this in their name")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if options.url:
        rows = asyncio.run(run(options.url, options))
    else:
        with own_server(options.port) as url:
            rows = asyncio.run(run(url, options))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
