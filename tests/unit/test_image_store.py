"""Images that answers link to: found by their names alone, for a while."""

import errno
import io
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="the routes are part of the server")

from vllm.exceptions import GracefulHTTPError

from vllm_dynin import envs
from vllm_dynin.entrypoints.http.image_store import ImageStore
from vllm_dynin.entrypoints.http.images import GenerationBody, _store_for


def test_what_is_put_is_got(tmp_path):
    store = ImageStore(tmp_path)
    names = [store.put(bytes([i]), "png") for i in range(3)]
    assert len(set(names)) == 3
    assert [store.get(name) for name in names] == [b"\0", b"\1", b"\2"]
    assert os.stat(tmp_path / names[0]).st_mode & 0o777 == 0o600


def test_nothing_else_in_the_folder_is_served(tmp_path):
    inside, outside = tmp_path / "images", tmp_path / "secret.png"
    inside.mkdir()
    outside.write_bytes(b"secret")
    (inside / "secret.png").write_bytes(b"secret")
    linked = "0" * 32 + ".png"
    (inside / linked).symlink_to(outside)
    store = ImageStore(inside)
    names = ("secret.png", "../secret.png", linked, str(outside), "", "a" * 32, "A" * 32 + ".png")
    assert [store.get(name) for name in names] == [None] * len(names)


def test_images_grow_old(tmp_path):
    store = ImageStore(tmp_path, seconds=60)
    (tmp_path / "mine.txt").write_text("not an image of ours")
    old, new = store.put(b"old", "png"), store.put(b"new", "webp")
    os.utime(tmp_path / old, (time.time() - 61,) * 2)
    assert (store.get(old), store.get(new)) == (None, b"new")
    store.put(b"another", "png")
    assert not (tmp_path / old).exists()  # deleted, and nothing else
    assert {path.name for path in tmp_path.iterdir()} >= {new, "mine.txt"}


def test_the_oldest_makes_room(tmp_path):
    store = ImageStore(tmp_path, max_files=2)
    names = []
    for index in range(4):
        names.append(store.put(b"x", "png"))
        os.utime(tmp_path / names[-1], (time.time() - 100 + index,) * 2)
    assert [store.get(name) is not None for name in names] == [False, False, True, True]


def test_configuration(tmp_path, monkeypatch):
    monkeypatch.delenv(envs.IMAGE_STORE, raising=False)
    assert ImageStore.of_environment() is None
    monkeypatch.setenv(envs.IMAGE_STORE, str(tmp_path))
    monkeypatch.setenv(envs.IMAGE_STORE_SECONDS, "5")
    assert ImageStore.of_environment() == ImageStore(tmp_path, seconds=5)
    monkeypatch.setenv(envs.IMAGE_STORE, str(tmp_path / "none"))
    with pytest.raises(ValueError, match="is not a folder that can be written to"):
        ImageStore.of_environment()


def test_no_links_without_a_store():
    server = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(dynin_images=None)))
    assert _store_for(GenerationBody(prompt="x"), server) is None
    with pytest.raises(ValueError, match=r"'url'.*use b64_json, or have the operator"):
        _store_for(GenerationBody(prompt="x", response_format="url"), server)


FULL = """
import os, sys, time
from vllm.exceptions import GracefulHTTPError
from vllm_dynin.entrypoints.http.image_store import ImageStore
import pathlib
folder = pathlib.Path(sys.argv[1])
store = ImageStore(folder)
names = []
for index in range(12):  # 12 times 16 KiB into 64 KiB
    names.append(store.put(bytes(16384), "png"))
    os.utime(folder / names[-1], (time.time() - 100 + index,) * 2)
kept = [store.get(name) is not None for name in names]
assert kept[-3:] == [True] * 3 and not any(kept[:-4]), kept
assert all(path.stat().st_size == 16384 for path in folder.iterdir())
before = sorted(path.name for path in folder.iterdir())
try:
    store.put(bytes(1 << 20), "png")
except GracefulHTTPError as error:
    assert error.http_status == 507, error
else:
    raise AssertionError("a megabyte has found room")
assert sorted(path.name for path in folder.iterdir()) == before
"""


def test_a_full_disk(tmp_path):
    """On a real file system of 64 KiB, in a mount namespace of its own."""
    script = 'mount -t tmpfs -o size=64k tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, FULL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"this machine mounts nothing here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


def test_a_disk_that_others_have_filled(tmp_path, monkeypatch):
    """No image is dropped in vain, and nothing half written stays."""
    store = ImageStore(tmp_path)
    name = store.put(b"x", "png")

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(file, mode):
        os.close(file)
        return Full()

    full = SimpleNamespace(f_bavail=0, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda folder: full)
    monkeypatch.setattr(os, "fdopen", open_full)
    with pytest.raises(GracefulHTTPError, match="no room") as error:
        store.put(bytes(100), "png")
    assert error.value.http_status == 507
    assert [path.name for path in tmp_path.iterdir()] == [name]
