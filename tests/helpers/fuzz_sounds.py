"""Damaged recordings sent to a server: no 5xx, nobody else notices, and no memory is lost.

    PYTHONPATH=tests python -m helpers.fuzz_sounds --files 2000

Starts `vllm-dynin serve` on dynin-tiny, and sends mutants of the recordings of `sound_variety` to
chat and to transcriptions by turns, several at once. Each must be answered with 200 or a 4xx that
says something, and a good recording between them must be heard. Memory: of each worker process by
itself, and of the server's processes at the start and at the end. Exit status 1 if anything fails;
the mutants that did are kept.
"""

from __future__ import annotations

import argparse
import base64
import collections
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from helpers import peaks
from helpers.audio_mutations import mutant
from helpers.fuzz_server import ALONE, MAX_GROWTH, fault, resident, served
from helpers.sound_variety import GOOD, WORDS, wav
from vllm_dynin.processors.codecs.limits import DEFAULT_LIMITS

CLIENTS = 16
WARM = 1_000
"""Mutants before the server's memory is first looked at: caches by length fill until then."""
MAX_WORKER = DEFAULT_LIMITS.max_decode_bytes + 256 * 2**20
"""The cap on decoding, and the interpreter with its libraries."""


def ask(http: httpx.Client, data: bytes, number: int) -> httpx.Response:
    """One recording, to one of the routes."""
    if number % 2:
        files, form = {"file": ("a", data)}, {"max_completion_tokens": 16, "temperature": 0}
        return http.post("/v1/audio/transcriptions", files=files, data=form)
    sound = {"data": base64.b64encode(data).decode(), "format": "wav"}
    content = [
        {"type": "input_audio", "input_audio": sound},
        {"type": "text", "text": "Transcribe the given audio."},
    ]
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 16}
    return http.post("/v1/chat/completions", json=body)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seconds", type=float, default=3_600, help="stop after this long")
    options = parser.parse_args()
    made = {name: make() for name, make in GOOD.items()}
    folder = Path(tempfile.mkdtemp(prefix="fuzz_sounds_"))
    written, statuses = folder / "peaks", collections.Counter[int]()
    failures: list[str] = []
    started = time.monotonic()
    with served(folder, **peaks.variables(written)) as server:
        http = httpx.Client(base_url=server.url, timeout=600, headers=ALONE)
        before = 0

        def one(number: int) -> None:
            name, mutations, data = mutant(made, options.first + number)
            answer = ask(http, data, number)
            statuses[answer.status_code] += 1
            if wrong := fault(answer):
                failures.append(f"mutant {number} of {name} {mutations}: {wrong}")
                (folder / f"mutant{number}").write_bytes(data)

        with ThreadPoolExecutor(CLIENTS) as clients:
            for first in range(0, options.files, WARM):
                list(clients.map(one, range(first, min(first + WARM, options.files))))
                for number in (0, 1):
                    answer = ask(http, wav(), number)
                    if WORDS not in answer.text:
                        failures.append(f"after {first + WARM}: {answer.text[:300]}")
                memory = resident(server.group)
                before = before or memory
                print(f"{first + WARM}: {dict(statuses)}, server {memory >> 20} MiB", flush=True)
                if time.monotonic() - started > options.seconds:
                    break
        growth = resident(server.group) - before
    workers = peaks.read(written, "audio_worker")
    if growth > MAX_GROWTH:
        failures.append(f"the server grew by {growth >> 20} MiB")
    if workers.most > MAX_WORKER:
        failures.append(f"a worker had {workers.most >> 20} MiB")
    print("\n".join(failures))
    count = sum(statuses.values())
    print(
        f"{count} mutants in {time.monotonic() - started:.0f} s: {dict(statuses)}; server "
        f"{growth / 2**20:+.0f} MiB from mutant {WARM} on; {workers.started} workers, "
        f"{workers.started - workers.ended} without an orderly end, the largest "
        f"{workers.most >> 20} MiB; {len(failures)} failures, kept in {folder}"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
