"""Samples that cannot be used: named, counted, listed, and too many of them an error."""

from __future__ import annotations

import enum
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_MIN_ROWS = 200
"""Rows before a share of bad ones is judged while reading; at the end it always is."""
_NUM_LISTED = 1000
"""Bad samples kept with their reasons; the counts go on."""


class BadKind(enum.StrEnum):
    """Why a sample is left out."""

    UNREADABLE = "unreadable"
    """The row itself: no JSON object, a damaged member of a tar."""
    FIELDS = "fields"
    """A field is missing, empty or of the wrong type."""
    PATH = "path"
    """A medium is not a local file below the root."""
    MEDIA = "media"
    """A medium is missing, damaged, or over a limit."""
    TOO_LONG = "too long"
    """Speech over the cap. Cutting it would leave a transcript that says more than the sound."""
    DOES_NOT_FIT = "does not fit"
    """The sequence: a text or an answer longer than its place in the template."""
    NO_SPEECH = "no speech"
    """The transcript says that nobody speaks."""


class BadSample(ValueError):
    """One sample cannot be used; the others can.

    Args:
        kind: for the counts.
        message: the value, the rule, the way out.
    """

    def __init__(self, kind: BadKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class TooManyBad(ValueError):
    """More samples of a source are bad than the run allows."""


@dataclass(frozen=True)
class BadEntry:
    """One line of a report.

    Args:
        source: name of the source.
        key: of the row.
        kind: a `BadKind`.
        message: what was wrong.
    """

    source: str
    key: str
    kind: str
    message: str


class BadLog:
    """Counts good and bad samples of each source, and lists the bad ones.

    Args:
        max_share: bad samples allowed, as a share of all of a source's.

    Raises:
        ValueError: max_share is not in 0 .. 1.
    """

    def __init__(self, max_share: float = 0.01) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share={max_share} must be in 0 .. 1")
        self.max_share = max_share
        self.num_read: Counter[str] = Counter()
        self.num_bad: Counter[tuple[str, str]] = Counter()
        self.entries: list[BadEntry] = []

    def good(self, source: str, count: int = 1) -> None:
        """Count samples that were read."""
        self.num_read[source] += count

    def bad(self, entry: BadEntry) -> None:
        """Count and list a sample that was left out.

        Raises:
            TooManyBad: it is one too many, and enough rows were read to say so.
        """
        self.num_read[entry.source] += 1
        self.num_bad[entry.source, entry.kind] += 1
        if len(self.entries) < _NUM_LISTED:
            self.entries.append(entry)
        if self.num_read[entry.source] >= _MIN_ROWS:
            self.check(entry.source)

    def bad_of(self, source: str) -> int:
        """Bad samples of a source."""
        return sum(count for (name, _), count in self.num_bad.items() if name == source)

    def check(self, source: str | None = None) -> None:
        """Compare with the limit.

        Args:
            source: one of them; None checks all.

        Raises:
            TooManyBad: a source is over it; the message has counts and the first examples.
        """
        for name in list(self.num_read) if source is None else [source]:
            num_bad, num_read = self.bad_of(name), self.num_read[name]
            if num_bad > self.max_share * num_read:
                examples = [entry for entry in self.entries if entry.source == name][:3]
                shown = "; ".join(f"{entry.key}: {entry.message}" for entry in examples)
                raise TooManyBad(
                    f"{name}: {num_bad} of {num_read} samples are bad ({self.describe(name)}), "
                    f"over the limit of {self.max_share:.2%}; mend the data or raise "
                    f"max_bad_share. First: {shown}"
                )

    def describe(self, source: str) -> str:
        """The counts of a source in words, e.g. `12 media, 3 too long`."""
        counts = {kind: count for (name, kind), count in self.num_bad.items() if name == source}
        return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "none"

    def state_dict(self) -> dict[str, Any]:
        """The counts, as JSON values."""
        return {
            "read": dict(self.num_read),
            "bad": [[source, kind, count] for (source, kind), count in self.num_bad.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from a state; the list of entries starts anew."""
        self.num_read = Counter(state["read"])
        self.num_bad = Counter({(source, kind): count for source, kind, count in state["bad"]})
        self.entries = []


def write_entries(path: Path, entries: Iterable[BadEntry]) -> None:
    """Write a report, one JSON object a line."""
    with open(path, "w", encoding="utf-8") as stream:
        for entry in entries:
            stream.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")


def read_entries(path: Path) -> list[BadEntry]:
    """Read a report back."""
    with open(path, encoding="utf-8") as stream:
        return [BadEntry(**json.loads(line)) for line in stream]
