"""WebDataset shards: plain tar files whose neighbouring members make up a sample.

`0001.jpg`, `0001.json`, `0001.txt` are one sample with the key `0001`. The headers are walked once
when a shard is opened; a sample is read by seeking to it, which a sequential reader cannot do when
training goes on in the middle of a shard. A test holds this reader to the `webdataset` package.
"""

from __future__ import annotations

import re
import tarfile
from array import array
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from vllm_dynin.processors.codecs.limits import DEFAULT_LIMITS
from vllm_dynin.training_ext.data.bad import BadKind, BadSample
from vllm_dynin.training_ext.data.rows import Row, parse_object

_STRIDE = 16
_BLOCK = 1024
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")
"""Folder and name up to the first dot; everything behind it is the extension."""
_TEXT = ("txt", "text", "caption", "transcript")


class TarTable:
    """One shard.

    Args:
        path: an uncompressed tar.
        root: as for the other tables; media that are members of the sample do not need it.

    Raises:
        ValueError: it is not such a file, or it is cut off.
    """

    block: int | None = _BLOCK

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path, self.name, self.root = path, path.name, root
        self._offsets = array("q")
        self._size = 0
        last = None
        try:
            with tarfile.open(path, "r:") as tar:
                for prefix, _, info in _members(tar):
                    if prefix == last:
                        continue
                    last = prefix
                    if self._size % _STRIDE == 0:
                        self._offsets.append(info.offset)
                    self._size += 1
        except tarfile.TarError as error:
            raise ValueError(
                f"{path}: {error}; a shard is a whole, uncompressed tar (one that is compressed "
                "cannot be entered in the middle: unpack it with gzip -d first)"
            ) from error

    def __len__(self) -> int:
        return self._size

    @cached_property
    def _stream(self) -> BinaryIO:
        return open(self.path, "rb")

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self._size:
            raise IndexError(index)
        self._stream.seek(self._offsets[index // _STRIDE])
        left, last = index % _STRIDE + 1, None
        fields: dict[str, Any] = {}
        with tarfile.open(fileobj=self._stream, mode="r:") as tar:
            for prefix, extension, info in _members(tar):
                if prefix != last:
                    last, left = prefix, left - 1
                    if left < 0:
                        break
                    key = prefix
                if left == 0:
                    _add(fields, extension, _read(tar, info))
        return Row(key=f"{self.name}:{key}", fields=fields, root=self.root)


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(sample, extension, header) of each file; the archive does not keep the headers."""
    while (info := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # not in the stubs; it would keep them all
        match = _NAME.fullmatch(info.name) if info.isreg() else None
        if match is not None:
            yield match[1], match[2].lower(), info


def _read(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    if info.size > DEFAULT_LIMITS.max_bytes:
        raise BadSample(
            BadKind.MEDIA,
            f"member {info.name} has {info.size} bytes, over max_bytes={DEFAULT_LIMITS.max_bytes}",
        )
    stream = tar.extractfile(info)
    assert stream is not None, info.name
    try:
        return stream.read()
    except tarfile.TarError as error:
        raise BadSample(BadKind.UNREADABLE, f"member {info.name}: {error}") from error


def _add(fields: dict[str, Any], extension: str, content: bytes) -> None:
    """A member as a field: JSON objects are laid open, text is decoded, the rest are bytes."""
    if extension == "json":
        fields.update(parse_object(content))
    elif extension in _TEXT:
        try:
            fields[extension] = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadSample(BadKind.UNREADABLE, f"member .{extension}: {error}") from error
    else:
        fields[extension] = content
