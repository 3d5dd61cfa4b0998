"""Decoding in a process of its own, with memory and processor time capped.

FFmpeg and Pillow read what strangers send. A file of a kilobyte can claim 400 million samples, for
which FFmpeg would fill about 14 GB, and a crash in a decoder must not end a server. So
`image_worker`, `video_worker` and `audio_worker` are programs: the file is their standard input, a
JSON task their argument, and what they decode their standard output. Starting one costs about
0.15 s of one core, that for images 0.06 s.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import IO, Any, BinaryIO

from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits

logger = logging.getLogger(__name__)

_EXIT_REFUSED = 3
_MISTAKES = (TypeError, AttributeError, NameError, ImportError)
"""What no file raises by itself: this package and its libraries do not fit together."""
_SAFE_FORMATS = {"image": "PNG", "video": "mp4", "audio": "WAV"}

# Wall time allowed over processor time before a worker that waits for something is ended.
_WALL_TIME_FACTOR = 5
_TRACEBACK_BYTES = 4096
_MIN_WALL_SECONDS = 60  # a busy machine may keep a worker waiting


class WorkerError(RuntimeError):
    """Decoding does not work here at all: a mistake of ours, or an incomplete installation.

    Not a `MediaError`: nobody's file is to blame.
    """


def run_worker(
    module: str, stream: BinaryIO, task: Mapping[str, Any], limits: MediaLimits, medium: str
) -> bytes:
    """Run a worker on a file and return what it decoded.

    Args:
        module: dotted name of the worker, which calls `serve`.
        stream: the file; read from its start.
        task: JSON-serialisable.
        limits: `max_decode_bytes` and `max_decode_seconds` cap the worker; it gets all of them.
        medium: what the file is, for messages: image, video or audio.

    Raises:
        MediaError: the worker refused the file, failed on it, or met a cap.
        WorkerError: it would fail on any file.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OPENBLAS_NUM_THREADS": "1",  # NumPy's pool reserves memory for every core at import
        "MALLOC_ARENA_MAX": "2",
    }
    argument = json.dumps({**task, "limits": asdict(limits), "medium": medium})
    try:
        with _with_descriptor(stream) as file, tempfile.TemporaryFile() as errors:
            done = subprocess.run(
                [sys.executable, "-m", module, argument],
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                timeout=max(_WALL_TIME_FACTOR * limits.max_decode_seconds, _MIN_WALL_SECONDS),
                check=False,
            )
            traceback = _end_of(errors)
    except subprocess.TimeoutExpired as error:
        raise MediaError(
            f"decoding the {medium} hung for {error.timeout} s and was ended"
        ) from error
    if done.returncode == _EXIT_REFUSED:
        raise MediaError(done.stdout.decode())
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise MediaError(
            f"decoding the {medium} took over max_decode_seconds={limits.max_decode_seconds}; "
            "send a shorter or smaller one or raise the limit in MediaLimits"
        )
    if done.returncode < 0:
        raise MediaError(
            f"the {medium} decoder failed on this file (exit status {done.returncode}); "
            f"re-encode it, for example as {_SAFE_FORMATS.get(medium, medium)}"
        )
    if done.returncode != 0:
        logger.error("the %s worker failed:\n%s", medium, traceback)
        reason = traceback.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        raise WorkerError(
            f"the {medium} decoder does not work on this server ({reason}); the file is not to "
            "blame"
        )
    return done.stdout


def _end_of(errors: IO[bytes]) -> str:
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - _TRACEBACK_BYTES))
    return errors.read().decode(errors="replace")


@contextmanager
def _with_descriptor(stream: BinaryIO) -> Iterator[IO[bytes]]:
    """A file at its start that another process can be given: the stream's own, or a copy."""
    # Only a plain file's descriptor is sure to give what its read() gives (gzip's does not).
    if isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO):
        # Opened anew, because a descriptor shares its position with the one it is copied from, and
        # a caller's file object must not find itself elsewhere.
        with open(f"/proc/self/fd/{stream.fileno()}", "rb", buffering=0) as file:
            yield file
        return
    stream.seek(0)
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy)
        copy.seek(0)
        yield copy


def serve(
    decode: Callable[[BinaryIO, dict[str, Any], MediaLimits], Iterator[bytes]], library: str = "av"
) -> int:
    """The worker's side: cap this process, decode standard input to standard output.

    Args:
        decode: takes the file, the task and the limits, and yields the output.
        library: imported, and so mapped, before the memory cap is computed.

    Returns:
        The exit status.
    """
    importlib.import_module(library)
    task = json.loads(sys.argv[1])
    limits = MediaLimits(**task.pop("limits"))
    medium = task.pop("medium")
    _limit_process(limits)
    try:
        # All of it before any is written: the output is either the medium or a message.
        pieces = list(decode(sys.stdin.buffer, task, limits))
    except MediaError as error:
        sys.stdout.buffer.write(str(error).encode())
        return _EXIT_REFUSED
    except _MISTAKES:
        raise
    except MemoryError:
        sys.stdout.buffer.write(
            f"decoding the {medium} needs over max_decode_bytes={limits.max_decode_bytes}; "
            "send a smaller one or raise the limit in MediaLimits".encode()
        )
        return _EXIT_REFUSED
    except Exception as error:  # whatever a library lets through that reads what strangers send
        sys.stdout.buffer.write(
            f"the {medium} is damaged or of an unsupported kind ({type(error).__name__}: {error})"[
                :300
            ].encode(errors="replace")
        )
        return _EXIT_REFUSED
    for piece in pieces:
        sys.stdout.buffer.write(piece)
    return 0


def _limit_process(limits: MediaLimits) -> None:
    """Cap processor time, and memory on top of what the interpreter and libraries already map."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    ceiling = mapped + limits.max_decode_bytes
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
    seconds = limits.max_decode_seconds
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
