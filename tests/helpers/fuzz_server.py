"""What the fuzz commands have in common: a server on dynin-tiny, its memory, and its answers."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

import vllm_dynin

if TYPE_CHECKING:
    from helpers.server import Server

DYNIN_TINY = Path(vllm_dynin.__file__).parent / "assets" / "dynin-tiny"
ALONE = {"Connection": "close"}
"""Headers of the clients: a server closes a connection that was idle for seconds, at times while a
request is on its way to it."""
MAX_GROWTH = 64 * 2**20
"""Bytes that a process may grow by, once its caches are filled."""


@contextmanager
def served(folder: Path, **variables: str) -> Iterator[Server]:
    """`vllm-dynin serve` on dynin-tiny, with its log in a folder.

    Imported late: to Linux a child's peak memory is at least that of its parent, and commands
    without a server start workers too.
    """
    from helpers.server import DYNIN_SERVE, serve

    sizes = ("--max-model-len", "1024", "--num-gpu-blocks-override", "512", "--max-num-seqs", "16")
    with serve(DYNIN_TINY, folder / "log", *sizes, program=DYNIN_SERVE, **variables) as server:
        yield server


def fault(answer: httpx.Response) -> str:
    """What is wrong with an answer to damaged media; empty if nothing is."""
    if answer.status_code == 200:
        return ""
    if not 400 <= answer.status_code < 500:
        return f"status {answer.status_code}: {answer.text[:300]}"
    message = answer.json().get("error", {}).get("message", "")
    return "" if len(message) > 20 else f"a refusal that says nothing: {answer.text[:300]}"


def processes(group: int) -> list[Path]:
    """Folders in /proc of the processes of a group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        fields = read(folder / "stat").rpartition(b")")[2].split()
        if len(fields) > 2 and int(fields[2]) == group:
            found.append(folder)
    return found


def resident(group: int) -> int:
    """Bytes of the processes of a group, but for media workers."""
    pages = 0
    for folder in processes(group):
        if b"_worker" not in read(folder / "cmdline"):
            pages += int((read(folder / "statm").split() or [b"0", b"0"])[1])
    return pages * resource.getpagesize()


def read(path: Path) -> bytes:
    """A file of /proc; empty where its process has just ended."""
    with suppress(OSError):
        return path.read_bytes()
    return b""
