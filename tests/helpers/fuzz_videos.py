"""Damaged videos for the guard and for a server: no 5xx, no memory lost, nobody else notices.

    make fuzz MEDIUM=video ARGS="--files 2000"

Mutants of the films of `video_variety` are sent to chat of a `vllm-dynin serve` on dynin-tiny,
several at once, as files and as lists of pictures. Each must be answered with 200 or a 4xx that
says something, and a good film in between must be understood. Every process of the server is looked
at all the while: workers one by one, the server's own at the start and at the end. With `--guard`
there is no server: `load_frames` takes frames of each mutant, in a worker as in serving, and the
kernel tells the workers' peak. Exit status 1 if anything fails; mutants that did are kept.
"""

from __future__ import annotations

import argparse
import base64
import random
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import httpx

from helpers.fuzz_media import mutate
from helpers.fuzz_server import ALONE, MAX_GROWTH, fault, processes, read, resident, served
from helpers.server import Server
from helpers.video_files import still
from helpers.video_variety import FILMS, MOVING, file_of
from vllm_dynin.processors.codecs.limits import DEFAULT_LIMITS, MediaError
from vllm_dynin.processors.codecs.video import load_frames

CLIENTS, WARM = 8, 200
"""Mutants at once, and before memory is first looked at."""
MAX_WORKER = DEFAULT_LIMITS.max_decode_bytes + 256 * 2**20
"""The cap on decoding, and the interpreter with its libraries."""
_LARGEST = 60_000  # bytes of a film that is damaged: changes in a larger one mostly meet nothing
GOOD = "mp4 libx264 yuv420p"


def _made() -> list[bytes]:
    files = [file_of(name) for name in MOVING]
    return [data for data in files if 0 < len(data) <= _LARGEST]


@cache
def originals() -> list[bytes]:
    """What is damaged.

    Made in a process of its own: encoders leave gigabytes behind, and the kernel counts what the
    caller holds to the peak of each worker that it starts.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as maker:
        return maker.submit(_made).result()


def mutant(number: int) -> bytes:
    """A damaged film; the same for the same number."""
    chance = random.Random(f"film {number}")
    return mutate(chance.choice(originals()), originals(), chance)


def url(number: int) -> str:
    """As a file, or every eighth as a list of pictures one of which is damaged."""
    if number % 8:
        return f"data:video/mp4;base64,{base64.b64encode(mutant(number)).decode()}"
    chance = random.Random(f"list {number}")
    frames = [still(frame, "JPEG") for frame in FILMS[0].frames(96)]
    at = chance.randrange(len(frames))
    frames[at] = mutate(frames[at], frames, chance)
    return "data:video/jpeg;base64," + ",".join(base64.b64encode(f).decode() for f in frames)


def ask(http: httpx.Client, video: str) -> httpx.Response:
    """A question about one film."""
    content = [
        {"type": "video_url", "video_url": {"url": video}},
        {"type": "text", "text": "What happens in the clip?"},
    ]
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 16}
    return http.post("/v1/chat/completions", json=body)


class Run:
    """What came out of a run; mutants that failed are kept in a folder of its own."""

    def __init__(self) -> None:
        self.kept = Path(tempfile.mkdtemp(prefix="fuzz_videos_"))
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []

    def note(self, number: int, outcome: str, wrong: str) -> None:
        """Count a mutant, and keep it where it failed."""
        self.outcomes[outcome] += 1
        if wrong:
            self.failures.append(f"mutant {number}: {wrong}")
            (self.kept / f"mutant{number}").write_bytes(mutant(number))

    def each(self, files: int, one: Callable[[int], None], after: Callable[[int], None]) -> None:
        """Run all, several at once; `after` is called now and then with how many are done."""
        with ThreadPoolExecutor(CLIENTS) as clients:
            for first in range(0, files, WARM):
                stop = min(first + WARM, files)
                list(clients.map(one, range(first, stop)))
                after(stop)
                print(f"{stop}: {dict(self.outcomes)}", file=sys.stderr, flush=True)


class Watch(threading.Thread):
    """Looks at the processes of a server for as long as it runs.

    Args:
        server: of which the workers are.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.group, self.most, self.seen, self.is_over = server.group, 0, set[str](), False

    def run(self) -> None:
        """Peaks of the workers, which live for a quarter of a second."""
        while not self.is_over:
            for process in processes(self.group):
                if b"video_worker" in read(process / "cmdline"):
                    self.seen.add(process.name)
                    status = read(process / "status").decode()
                    peak = status.partition("VmHWM:")[2].split()[:1]
                    self.most = max(self.most, int(*peak or (0,)) * 1024)
            time.sleep(0.01)


def guard(files: int, run: Run) -> str:
    """The mutants through `load_frames`; a summary of memory."""

    def one(number: int) -> None:
        try:
            frames = load_frames(mutant(number), 5, 48)
            run.note(number, "opened", "" if len(frames) == 5 else f"{len(frames)} frames")
        except MediaError as error:
            run.note(number, "refused", "" if len(str(error)) > 20 else repr(error))
        except Exception as error:
            run.note(number, "failed", repr(error))

    held: list[int] = []

    def after(done: int) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        held.append(pages * resource.getpagesize())

    run.each(files, one, after)
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return _memory(run, most, held)


def server(files: int, run: Run) -> str:
    """The mutants over HTTP; a summary of memory."""
    held: list[int] = []
    with served(run.kept) as started:
        watch, http = Watch(started), httpx.Client(base_url=started.url, timeout=600, headers=ALONE)
        watch.start()

        def one(number: int) -> None:
            answer = ask(http, url(number))
            run.note(number, str(answer.status_code), fault(answer))

        def after(done: int) -> None:
            good = f"data:video/mp4;base64,{base64.b64encode(file_of(GOOD)).decode()}"
            answer = ask(http, good)
            if MOVING[GOOD][0].answer not in answer.text:
                run.failures.append(f"after {done} a good film is answered {answer.text[:300]}")
            held.append(resident(started.group))

        run.each(files, one, after)
        watch.is_over = True
    return f"{len(watch.seen)} workers seen; {_memory(run, watch.most, held)}"


def _memory(run: Run, most: int, held: list[int]) -> str:
    growth = held[-1] - held[0]
    if most > MAX_WORKER:
        run.failures.append(f"a worker had {most >> 20} MiB")
    if growth > MAX_GROWTH:
        run.failures.append(f"the caller grew by {growth >> 20} MiB")
    return (
        f"largest worker {most >> 20} MiB; caller {held[0] >> 20} MiB after {WARM}, "
        f"{growth / 2**20:+.0f} MiB at the end"
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--guard", action="store_true", help="without a server")
    options = parser.parse_args()
    run, begun = Run(), time.monotonic()
    originals()  # once, before there are threads that would each make them
    told = (guard if options.guard else server)(options.files, run)
    print("\n".join(run.failures))
    print(
        f"{options.files} mutants of {len(originals())} films in {time.monotonic() - begun:.0f} s: "
        f"{dict(run.outcomes)}; {told}; {len(run.failures)} failures, kept in {run.kept}"
    )
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
