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
from itertools import groupby
from pathlib import Path
from typing import Any

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
        try:
            with tarfile.open(path, "r:") as tar:
                for _, members in groupby(_members(tar), _sample):
                    if self._size % _STRIDE == 0:
                        self._offsets.append(next(members)[2].offset)
                    self._size += 1
        except tarfile.TarError as error:
            raise ValueError(
                f"{path}: {error}; a shard is a whole, uncompressed tar (one that is compressed "
                "cannot be entered in the middle: unpack it with gzip -d first)"
            ) from error

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self._size:
            raise IndexError(index)
        to_skip = index % _STRIDE
        fields: dict[str, Any] = {}
        key = ""
        with open(self.path, "rb") as stream:
            stream.seek(self._offsets[index // _STRIDE])
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for number, (prefix, members) in enumerate(groupby(_members(tar), _sample)):
                    if number == to_skip:
                        key = prefix
                        for _, extension, info in members:
                            _add(fields, extension, _read(tar, info))
                        break
        return Row(key=f"{self.name}:{key}", fields=fields, root=self.root)


_Member = tuple[str, str, tarfile.TarInfo]


def _sample(member: _Member) -> str:
    return member[0]


def _members(tar: tarfile.TarFile) -> Iterator[_Member]:
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
