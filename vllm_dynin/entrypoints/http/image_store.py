"""Images that answers link to: files of one folder, with names nobody can guess, for an hour.

There is a store only where the operator names a folder (`VLLM_DYNIN_IMAGE_STORE`). Names are made
here, and only names of that form are read: nothing a client sends becomes a path.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from vllm.exceptions import GracefulHTTPError

from vllm_dynin import envs

logger = logging.getLogger(__name__)

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_NO_ROOM = (
    "the server has no room to keep an image to link to; use response_format b64_json, or try "
    "again later"
)
_NAME = re.compile(rf"[0-9a-f]{{32}}\.(?:{'|'.join(MEDIA_TYPES)})")


@dataclass(frozen=True)
class ImageStore:
    """Images by name. Several server processes may share a folder.

    Args:
        folder: exists; other files in it are left alone.
        seconds: that an image is kept.
        max_files: kept at a time; the oldest goes first.

    Raises:
        ValueError: there is no such folder, or it cannot be written to.
    """

    folder: Path
    seconds: int = 3_600
    max_files: int = 10_000

    def __post_init__(self) -> None:
        if not self.folder.is_dir() or not os.access(self.folder, os.W_OK | os.X_OK):
            raise ValueError(
                f"{envs.IMAGE_STORE}={str(self.folder)!r} is not a folder that can be written to; "
                "make it, or unset the variable"
            )

    @classmethod
    def of_environment(cls) -> ImageStore | None:
        """The store the operator has configured; None without one.

        Raises:
            ValueError: an environment variable is wrong.
        """
        folder = os.environ.get(envs.IMAGE_STORE)
        if not folder:
            return None
        return cls(Path(folder), envs.positive(envs.IMAGE_STORE_SECONDS, cls.seconds))

    def put(self, data: bytes, image_format: str) -> str:
        """Keep a file; its name. Where the disk is full, the oldest images make room.

        Raises:
            GracefulHTTPError: 507, there is no room for it; nothing of it stays.
        """
        assert image_format in MEDIA_TYPES
        self._tidy()
        name = f"{secrets.token_hex(16)}.{image_format}"
        while True:
            try:
                self._write(name, data)
            except OSError as error:
                if not self._make_room(error, len(data)):
                    logger.error("the image store %s cannot be written to: %s", self.folder, error)
                    raise GracefulHTTPError(_NO_ROOM, HTTPStatus.INSUFFICIENT_STORAGE) from error
            else:
                return name

    def _write(self, name: str, data: bytes) -> None:
        """Write a file, or leave nothing."""
        path = self.folder / name
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(data)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _make_room(self, error: OSError, num_bytes: int) -> bool:
        """Delete the oldest image, if that can help; whether it is worth another try."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return False
        found = self._images()
        free = os.statvfs(self.folder)
        room = free.f_bavail * free.f_frsize + sum(size for _, size, _ in found)
        if not found or room < num_bytes:  # others have filled the disk: ours stay
            return False
        found[0][2].unlink(missing_ok=True)
        return True

    def get(self, name: str) -> bytes | None:
        """The file of a name; None where there is none (any more)."""
        if not _NAME.fullmatch(name):
            return None
        try:
            file = os.open(self.folder / name, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return None
        with os.fdopen(file, "rb") as stream:
            if time.time() - os.fstat(file).st_mtime > self.seconds:
                return None
            return stream.read()

    def _tidy(self) -> None:
        """Delete what is too old or too much."""
        found = self._images()
        oldest = time.time() - self.seconds
        surplus = len(found) - self.max_files + 1
        for index, (modified, _, path) in enumerate(found):
            if modified < oldest or index < surplus:
                path.unlink(missing_ok=True)

    def _images(self) -> list[tuple[float, int, Path]]:
        """Time, size in bytes and path of every image, the oldest first."""
        found = []
        for entry in os.scandir(self.folder):
            if _NAME.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):  # another process was first
                    stat = entry.stat(follow_symlinks=False)
                    found.append((stat.st_mtime, stat.st_size, Path(entry.path)))
        return sorted(found)
