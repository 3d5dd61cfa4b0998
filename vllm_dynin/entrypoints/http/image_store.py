"""Images that answers link to: files of one folder, with names nobody can guess, for an hour.

There is a store only where the operator names a folder (`VLLM_DYNIN_IMAGE_STORE`). Names are made
here, and only names of that form are read: nothing a client sends becomes a path.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from vllm_dynin import envs

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
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
        """Keep a file; its name."""
        assert image_format in MEDIA_TYPES
        self._tidy()
        name = f"{secrets.token_hex(16)}.{image_format}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(self.folder / name, flags, 0o600), "wb") as file:
            file.write(data)
        return name

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
        found = []
        for entry in os.scandir(self.folder):
            if _NAME.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):  # another process was first
                    found.append((entry.stat(follow_symlinks=False).st_mtime, entry.path))
        found.sort()
        oldest = time.time() - self.seconds
        surplus = len(found) - self.max_files + 1
        for index, (modified, path) in enumerate(found):
            if modified < oldest or index < surplus:
                Path(path).unlink(missing_ok=True)
