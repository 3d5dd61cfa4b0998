"""Damaged pictures for the guard and for a server: no 5xx, no memory lost, nobody else notices.

    PYTHONPATH=tests python -m helpers.fuzz_pictures guard --files 2000
    PYTHONPATH=tests python -m helpers.fuzz_pictures server --files 2000

`guard` opens mutants of the pictures of `picture_variety` with `open_image` and `open_mask`, each
in a worker process as in serving, and measures these. `server` starts `vllm-dynin serve` on
dynin-tiny and sends them to chat and to the edits route, as picture and as mask, several at once;
each must be answered with 200 or a 4xx that says something, and a good picture in between must be
recognised.
Exit status 1 if anything fails; the mutants that did are kept.
"""

from __future__ import annotations

import argparse
import base64
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import httpx

from helpers.fuzz_media import mutate
from helpers.fuzz_server import ALONE, MAX_GROWTH, fault, resident, served
from vllm_dynin.processors.codecs.image_io import open_image, open_mask
from vllm_dynin.processors.codecs.limits import DEFAULT_LIMITS, MediaError

CLIENTS = 8
WARM = 200
"""Mutants before memory is first looked at."""
MAX_WORKER = DEFAULT_LIMITS.max_decode_bytes + 64 * 2**20
"""The cap on decoding, and the interpreter with its libraries."""
_LARGEST = 50_000  # bytes of a file that is damaged: changes in a larger one mostly meet nothing


# Nothing large is imported here: to Linux a child's peak memory is at least that of its parent.
_MAKE = """
import base64
from helpers.picture_variety import SHOWN, encoded, original, pictures
from vllm_dynin.training_ext.tiny import digits
from vllm_dynin.training_ext.tiny.words import DIGIT_WORDS
print(DIGIT_WORDS[digits.label(SHOWN[0])])
for data in [encoded(original(SHOWN[0]), "PNG"), *(picture.data for picture in pictures())]:
    print(base64.b64encode(data).decode())
"""


@cache
def _made() -> tuple[str, tuple[bytes, ...]]:
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", _MAKE], capture_output=True,
                         text=True, check=True)  # fmt: skip
    word, *files = run.stdout.split()
    return word, tuple(base64.b64decode(file) for file in files)


def good() -> tuple[str, bytes]:
    """The word for a digit, and a good picture of it."""
    word, files = _made()
    return word, files[0]


@cache
def originals() -> tuple[bytes, ...]:
    """What is damaged."""
    return tuple(file for file in _made()[1] if len(file) <= _LARGEST)


def mutant(number: int) -> bytes:
    """A damaged picture; the same for the same number."""
    chance = random.Random(f"picture {number}")
    return mutate(chance.choice(originals()), list(originals()), chance)


def ask(http: httpx.Client, data: bytes, number: int) -> httpx.Response:
    """One picture to one of the ways in."""
    if number % 4 == 0:
        form = {"prompt": "invert the picture", "temperature": "0", "num_inference_steps": "2"}
        return http.post("/v1/images/edits", data=form, files={"image": ("a.png", data)})
    if number % 4 == 2:
        form = {"prompt": "draw a seven", "num_inference_steps": "2"}
        files = {"image": ("a.png", good()[1]), "mask": ("b.png", data)}
        return http.post("/v1/images/edits", data=form, files=files)
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "Which digit is this?"},
    ]
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 16}
    return http.post("/v1/chat/completions", json=body)


def is_recognised(http: httpx.Client) -> bool:
    """Whether a good picture is."""
    word, picture = good()
    answer = ask(http, picture, 1)
    return answer.status_code == 200 and word in answer.text


class Run:
    """What came out of a run.

    Args:
        kept: folder for the mutants that failed.
    """

    def __init__(self, kept: Path) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []
        self._kept = kept

    def note(self, number: int, data: bytes, outcome: str, wrong: str) -> None:
        """Count a mutant, and keep it where it failed."""
        self.outcomes[outcome] += 1
        if wrong:
            self.failures.append(f"mutant {number}: {wrong}")
            (self._kept / f"mutant{number}").write_bytes(data)


def guard(files: int, run: Run) -> str:
    """The mutants through `open_image` and `open_mask`; a summary of the workers' memory."""

    def one(number: int) -> None:
        data = mutant(number)
        try:
            image = open_mask(data) if number % 4 == 2 else open_image(data)
            is_right = image.mode in ("L", "RGB") and image.width * image.height > 0
            run.note(number, data, "opened", "" if is_right else f"{image.mode} {image.size}")
        except MediaError as error:
            is_clear = len(str(error)) > 20
            run.note(number, data, "refused", "" if is_clear else repr(error))
        except Exception as error:
            run.note(number, data, "failed", repr(error))

    with ThreadPoolExecutor(CLIENTS) as clients:
        before = 0
        for first in range(0, files, WARM):
            list(clients.map(one, range(first, min(first + WARM, files))))
            status = Path("/proc/self/statm").read_text().split()
            memory = int(status[1]) * resource.getpagesize()
            before = before or memory
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    if most > MAX_WORKER:
        run.failures.append(f"a worker had {most >> 20} MiB")
    if memory - before > MAX_GROWTH:
        run.failures.append(f"this process grew by {(memory - before) >> 20} MiB")
    return f"no worker above {most >> 20} MiB, this process {(memory - before) / 2**20:+.0f} MiB"


def server(files: int, run: Run, folder: Path) -> str:
    """The mutants over HTTP; a summary of the server's memory."""
    with served(folder) as started:
        http = httpx.Client(base_url=started.url, timeout=600, headers=ALONE)
        before = memory = 0

        def one(number: int) -> None:
            data = mutant(number)
            answer = ask(http, data, number)
            run.note(number, data, str(answer.status_code), fault(answer))

        with ThreadPoolExecutor(CLIENTS) as clients:
            for first in range(0, files, WARM):
                list(clients.map(one, range(first, min(first + WARM, files))))
                if not is_recognised(http):
                    run.failures.append(f"after mutant {first + WARM} a good picture is not known")
                memory = resident(started.group)
                before = before or memory
                print(f"{first + WARM}: {dict(run.outcomes)}, {memory >> 20} MiB", flush=True)
    if memory - before > MAX_GROWTH:
        run.failures.append(f"the server grew by {(memory - before) >> 20} MiB")
    return f"server {(memory - before) / 2**20:+.0f} MiB from mutant {WARM} on"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("guard", "server"))
    parser.add_argument("--files", type=int, default=2_000)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz_pictures_"))
    run, begun = Run(folder), time.monotonic()
    told = guard(options.files, run) if options.what == "guard" else ""
    told = told or server(options.files, run, folder)
    print("\n".join(run.failures))
    print(
        f"{options.files} mutants in {time.monotonic() - begun:.0f} s: {dict(run.outcomes)}; "
        f"{told}; {len(run.failures)} failures, kept in {folder}"
    )
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
