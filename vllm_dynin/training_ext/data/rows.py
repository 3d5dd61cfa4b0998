"""One row of a data set, whatever file it came from, and the media it names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vllm_dynin.training_ext.data.bad import BadKind, BadSample

Medium = Path | bytes | tuple[int, ...]
"""A local file, the bytes of one, or codes that are known already."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row as it was read.

    Args:
        key: names the row within its set, and stays the same from run to run.
        fields: its columns.
        root: folder that media paths are relative to, and must stay in; None where media can only
            be bytes of the row itself.
    """

    key: str
    fields: Mapping[str, Any] = field(repr=False)
    root: Path | None = None

    def medium(self, value: Any) -> Medium:
        """What a field says about one image, video or recording.

        Args:
            value: a path; bytes; codes; `{"bytes": …, "path": …}` as `datasets` writes them; or,
                in a tar, the extension of another member of the sample.

        Raises:
            BadSample: none of these, or a path that leaves the root.
        """
        if isinstance(value, Mapping):
            inner = value.get("bytes")
            value = value.get("path") if inner is None else inner
        if isinstance(value, bytes):
            return value
        if isinstance(value, Sequence) and not isinstance(value, str):
            if value and all(type(code) is int for code in value):
                return tuple(value)
            raise BadSample(BadKind.FIELDS, f"{_short(value)} is not a list of codes")
        if not isinstance(value, str) or not value:
            raise BadSample(
                BadKind.FIELDS,
                f"{_short(value)} is not a medium; give a path, bytes or a list of codes",
            )
        if isinstance(self.fields.get(value), bytes):
            return self.fields[value]
        return self._path(value)

    def _path(self, name: str) -> Path:
        if "://" in name or name.startswith(("data:", "file:", "pipe:")):
            raise BadSample(
                BadKind.PATH, f"{_short(name)} is not a local path; download the media first"
            )
        if self.root is None:
            raise BadSample(
                BadKind.PATH,
                f"{_short(name)} names no member of the sample, and the set has no media root",
            )
        try:
            path = (self.root / name).resolve()
        except (OSError, ValueError) as error:  # a loop of links; a NUL
            raise BadSample(BadKind.PATH, f"{_short(name)}: {error}") from error
        if not path.is_relative_to(self.root.resolve()):
            raise BadSample(
                BadKind.PATH,
                f"{_short(name)} leads out of {self.root}; media lie below the root "
                "(media_root names another one)",
            )
        return path


class Table(Protocol):
    """Rows that can be read one by one in any order, none of them held in memory."""

    name: str
    block: int | None
    """Neighbours that are cheap to read together; None where every row costs the same."""

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def __getitem__(self, index: int) -> Row:
        """Read one row.

        Raises:
            BadSample: it cannot be parsed.
            IndexError: there is no such row.
        """
        ...


def parse_object(text: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BadSample: it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadSample(BadKind.UNREADABLE, f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadSample(BadKind.UNREADABLE, f"a {type(value).__name__} where a JSON object belongs")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
