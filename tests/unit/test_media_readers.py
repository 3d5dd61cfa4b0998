"""Every representation of a medium that vLLM can be handed reaches a reader of ours.

vLLM's own classes are walked: the installed version's, and where RIG33_SITE names a folder with the
sources of another version, those too. A reader, or a way into one, that a version of vLLM adds and
nothing here stands for fails the test.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import importlib
import inspect
import io
import os
import pkgutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("vllm")
import vllm.multimodal.media as vllm_media
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media.base import MediaIO
from vllm.multimodal.media.connector import MediaConnector
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

from vllm_dynin.entrypoints.media_connector import (
    READERS,
    REFUSED_READERS,
    GuardedMediaConnector,
)
from vllm_dynin.entrypoints.media_io.guarded import GuardedIO
from vllm_dynin.entrypoints.media_io.video import GuardedVideoIO
from vllm_dynin.processors.codecs.video import load_frames

# What a reader of vLLM may have that decodes nothing of a client's.
NO_ENTRY = {"merge_kwargs", "get_max_bytes", "encode_base64", "__init__", "kwargs"}
# What the base class does itself, and calls the reader for.
ENTRIES = {"load_bytes", "load_base64", "load_file"}
REPLACED = {reader.__name__ for reader in READERS} | {r.__name__ for r in REFUSED_READERS}


def readers_of_the_installed_version() -> set[type]:
    found: set[type] = set()
    for module in pkgutil.iter_modules(vllm_media.__path__):
        loaded = importlib.import_module(f"{vllm_media.__name__}.{module.name}")
        for _, value in inspect.getmembers(loaded, inspect.isclass):
            if issubclass(value, MediaIO) and value is not MediaIO:
                found.add(value)
    return found


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def test_every_reader_has_one_of_ours_in_its_place():
    found = readers_of_the_installed_version()
    assert len(found) >= 6
    assert {reader.__name__ for reader in found} == REPLACED


@pytest.mark.parametrize(
    "reader", sorted(readers_of_the_installed_version(), key=lambda r: r.__name__)
)
def test_every_way_into_a_reader_is_ours(reader):
    assert public(reader) - NO_ENTRY == ENTRIES
    for guarded in {*READERS.values(), GuardedIO}:
        for entry in ENTRIES:
            owner = next(c for c in guarded.__mro__ if entry in vars(c))
            assert owner.__module__.startswith("vllm_dynin."), f"{guarded} takes vLLM's {entry}"


def test_every_way_into_the_connector_is_ours():
    for name in public(MediaConnector):
        assert name in vars(GuardedMediaConnector), f"MediaConnector.{name} is not guarded"


def sources(site: str) -> dict[str, ast.ClassDef]:
    classes = {}
    for path in (Path(site) / "vllm/multimodal/media").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] = node
    return classes


@pytest.mark.skipif("RIG33_SITE" not in os.environ, reason="RIG33_SITE names no other vLLM")
def test_the_same_of_another_version_by_its_sources():
    classes = sources(os.environ["RIG33_SITE"])

    def methods(node: ast.ClassDef) -> set[str]:
        functions = (n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
        return {function.name for function in functions}

    readers = {
        name
        for name, node in classes.items()
        if any(ast.unparse(base).startswith("MediaIO") for base in node.bases)
    }
    assert readers == REPLACED
    for name in readers:
        entries = {m for m in methods(classes[name]) if not m.startswith("_")} - NO_ENTRY
        assert entries <= ENTRIES, name
    ways = {name for name in methods(classes["MediaConnector"]) if not name.startswith("_")}
    assert ways <= vars(GuardedMediaConnector).keys()
    (init,) = (n for n in classes["MediaConnector"].body if getattr(n, "name", "") == "__init__")
    theirs = {argument.arg for argument in (*init.args.args, *init.args.kwonlyargs)} - {"self"}
    ours = inspect.signature(GuardedMediaConnector.__init__).parameters.keys() - {"self"}
    assert theirs <= ours


def test_an_unknown_reader_is_our_mistake():
    class NewIO(MediaIO):
        def load_bytes(self, data):
            raise AssertionError

        def load_base64(self, media_type, data):
            raise AssertionError

        load_file = load_bytes

    with pytest.raises(TypeError, match="NewIO decodes by itself"):
        GuardedMediaConnector().load_from_url("data:a/b;base64,QUJD", NewIO())


# --- what they do ---


def png(side: int = 16, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def clip(num_frames: int = 9) -> bytes:
    """An animated picture whose frame i is grey 20·i."""
    frames = [Image.new("L", (32, 24), 20 * i) for i in range(num_frames)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:], duration=100)
    return buffer.getvalue()


def written(data: bytes) -> str:
    return base64.b64encode(data).decode()


OPTIONS = {"video": {"num_frames": 3, "resolution": 16}}


def both(connector: GuardedMediaConnector, kind: str, url: str) -> list:
    """What the two ways to fetch give."""
    plain = getattr(connector, f"fetch_{kind}")
    later = getattr(connector, f"fetch_{kind}_async")
    return [plain(url), asyncio.run(later(url))]


def greys(frames) -> list[int]:
    return [round(float(np.asarray(frame).mean())) for frame in frames]


def test_a_video_by_every_way(tmp_path):
    (tmp_path / "clip.png").write_bytes(clip())
    connector = GuardedMediaConnector(OPTIONS, allowed_local_media_path=str(tmp_path))
    frames = ",".join(written(png(16, (20 * i,) * 3)) for i in range(9))
    for url in (
        f"data:video/mp4;base64,{written(clip())}",
        f"data:image/apng;base64,{written(clip())}",
        f"DATA:;BASE64,{written(clip())}",
        f"file://{tmp_path}/clip.png",
        f"data:video/jpeg;base64,{frames}",
        f"data:VIDEO/JPEG;base64,{frames}",
    ):
        for video in both(connector, "video", url):
            assert greys(video.frames) == [0, 80, 160]
            assert video.frames.shape == (3, 16, 16, 3)
            assert greys(video.take(2, 8)) == [0, 160]  # others than were taken: from the source
    # vLLM's own readers, handed over by whoever makes them
    for reader in (VideoMediaIO(ImageMediaIO()), VideoMediaIO(ImageMediaIO(), num_frames=-1)):
        video = connector.load_from_url(f"data:video/mp4;base64,{written(clip())}", reader)
        assert greys(video.frames) == [0, 80, 160]


def test_nothing_is_decoded_where_the_size_is_not_known():
    (video, _) = both(GuardedMediaConnector(), "video", f"data:;base64,{written(clip())}")
    assert video.frames is None and greys(video.take(3, 16)) == [0, 80, 160]


REFUSED = {
    "no comma": ("data:video/mp4;base64", "no comma"),
    "not base64": ("data:video/mp4,abc", "does not say ;base64"),
    "stars": ("data:video/mp4;base64,****", "base64"),
    "nothing": ("data:video/mp4;base64,", "empty"),
    "no video": (f"data:video/mp4;base64,{written(b'no video' * 9)}", "not a readable video"),
    "an empty frame": (f"data:video/jpeg;base64,{written(png())},", "frame 1 of the video"),
    "a broken frame": (f"data:video/jpeg;base64,{written(b'no')}", "not a readable image"),
    "too many frames": ("data:video/jpeg;base64," + "QUJD," * 40_000, "max_frames"),
    "another scheme": ("ftp://a/b", "must be one of"),
    "a file": ("file:///etc/passwd", "must be one of"),
}


@pytest.mark.parametrize(("url", "message"), REFUSED.values(), ids=list(REFUSED))
def test_refused(url, message):
    connector = GuardedMediaConnector(OPTIONS)
    with pytest.raises(VLLMValidationError, match=message):
        connector.fetch_video(url)
    with pytest.raises(VLLMValidationError, match=message):
        asyncio.run(connector.fetch_video_async(url))


@pytest.mark.parametrize(
    "options",
    [
        {"num_frames": 0},
        {"num_frames": -1},
        {"num_frames": True},
        {"num_frames": "5"},
        {"num_frames": 100_000, "resolution": 16},
        {"num_frames": 20_000, "resolution": 336},
        {"resolution": 1.5},
        {"fps": 2},
        {"video_backend": "torchcodec"},
    ],
)
def test_options_that_are_refused(options):
    with pytest.raises(VLLMValidationError):
        GuardedMediaConnector({"video": OPTIONS["video"] | options}).fetch_video(
            f"data:;base64,{written(clip())}"
        )


@pytest.mark.parametrize("kind", ["audio", "image", "video"])
def test_embeddings_are_refused(kind):
    connector = GuardedMediaConnector()
    with pytest.raises(VLLMValidationError, match="send the medium itself"):
        getattr(connector, f"fetch_{kind}_embedding")("QUJD")
    with pytest.raises(VLLMValidationError, match="send the medium itself"):
        asyncio.run(getattr(connector, f"fetch_{kind}_embedding_async")("QUJD"))
    for reader in REFUSED_READERS:
        with pytest.raises(VLLMValidationError, match="send the medium itself"):
            connector.load_from_url("data:;base64,QUJD", reader())


class Budget:
    """As vLLM 0.33 has one for each request."""

    def __init__(self, limit: int) -> None:
        self.left, self.lock = limit, threading.Lock()

    def charge(self, size: int) -> None:
        with self.lock:
            if size > self.left:
                raise ValueError("Request decoded media exceeds the limit.")
            self.left -= size


def test_decoded_media_are_counted():
    url = f"data:;base64,{written(clip())}"
    budget = Budget(3 * 3 * 16 * 16 + 100)
    connector = GuardedMediaConnector(OPTIONS, decoded_budget=budget)
    connector.fetch_video(url)
    assert budget.left == 100
    with pytest.raises(VLLMValidationError, match="exceeds the limit"):
        connector.fetch_video(url)
    with pytest.raises(VLLMValidationError, match="exceeds the limit"):
        connector.fetch_image(f"data:;base64,{written(png())}")
    assert budget.left == 100


def test_thousands_of_small_frames_that_are_large():
    """A URL of 4 MB whose pictures have 540 MB of pixels: only the wanted ones are decoded."""
    frame = png(400, (9, 9, 9))
    url = "data:video/jpeg;base64," + ",".join([written(frame)] * 1125)
    program = (
        "import resource, sys\n"
        "from vllm_dynin.entrypoints.media_connector import GuardedMediaConnector\n"
        "url, connector = sys.stdin.read(), GuardedMediaConnector(" + repr(OPTIONS) + ")\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(connector.fetch_video(url).frames.shape)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"  # that decoded
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=url, capture_output=True, text=True, check=True
    )
    shape, grown, workers = done.stdout.splitlines()[-3:]
    assert shape == "(3, 16, 16, 3)" and int(grown) < 60_000, done.stdout
    assert int(workers) < 2_000_000


def test_a_mistake_of_ours_is_no_refusal(monkeypatch):
    """What would fail on any file must not become a 400."""

    def broken(*arguments):
        raise TypeError("open() got an unexpected keyword argument")

    monkeypatch.setattr("vllm_dynin.processors.codecs.video.run_worker", broken)
    with pytest.raises(TypeError):
        GuardedMediaConnector(OPTIONS).fetch_video(f"data:;base64,{written(clip())}")


def test_the_reader_gives_what_load_frames_gives():
    reader = GuardedVideoIO(4, 16)
    ours = [np.asarray(frame) for frame in load_frames(clip(), 4, 16)]
    assert np.array_equal(reader.load_bytes(clip()).frames, np.stack(ours))
