"""Samples that are not used: named, counted, listed, and too many of them an error.

There are two groups with a count, a list and a limit each. A *bad* sample is damaged: a set should
have next to none. A *filtered* one is sound, and the run has no room or no use for it: a set of
long traces has many, and that says nothing against it.
"""

from __future__ import annotations

import enum
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MAX_BAD_SHARE = 0.01
"""Damaged samples that are allowed, as a share of a source's."""
MAX_FILTERED_SHARE = 0.5
"""Filtered samples that are allowed: with more, set and stage are not made for each other."""
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
    NO_THOUGHT = "no thought"
    """An answer that is asked for with thinking, and does not think."""

    @property
    def is_filter(self) -> bool:
        """Whether the sample is sound, only not for this run."""
        return self in _FILTERS


_FILTERS = frozenset(
    {BadKind.TOO_LONG, BadKind.DOES_NOT_FIT, BadKind.NO_SPEECH, BadKind.NO_THOUGHT}
)


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
    """More samples of a source are damaged than the run allows."""


class TooManyFiltered(TooManyBad):
    """More samples of a source are left out than the run allows, damaged or not."""


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

    @property
    def is_filter(self) -> bool:
        """Whether the sample is sound, only not for this run."""
        return BadKind(self.kind).is_filter


class BadLog:
    """Counts what is read of each source, and lists what is left out.

    Args:
        max_share: damaged samples allowed, as a share of all of a source's.
        max_filtered: filtered samples allowed, likewise.

    Raises:
        ValueError: a share is not in 0 .. 1.
    """

    def __init__(
        self, max_share: float = MAX_BAD_SHARE, max_filtered: float = MAX_FILTERED_SHARE
    ) -> None:
        for name, share in (("max_share", max_share), ("max_filtered", max_filtered)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} must be in 0 .. 1")
        self.max_share, self.max_filtered = max_share, max_filtered
        self.num_read: Counter[str] = Counter()
        self.num_bad: Counter[tuple[str, str]] = Counter()
        self.entries: list[BadEntry] = []
        self.filtered: list[BadEntry] = []

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
        listed = self.filtered if entry.is_filter else self.entries
        if len(listed) < _NUM_LISTED:
            listed.append(entry)
        if self.num_read[entry.source] >= _MIN_ROWS:
            self.check(entry.source)

    def bad_of(self, source: str) -> int:
        """Damaged samples of a source."""
        return self._count(source, is_filter=False)

    def filtered_of(self, source: str) -> int:
        """Filtered samples of a source."""
        return self._count(source, is_filter=True)

    def _count(self, source: str, *, is_filter: bool) -> int:
        return sum(self._kinds(source, is_filter=is_filter).values())

    def _kinds(self, source: str, *, is_filter: bool) -> dict[str, int]:
        return {
            kind: count
            for (name, kind), count in sorted(self.num_bad.items())
            if name == source and BadKind(kind).is_filter == is_filter
        }

    def check(self, source: str | None = None) -> None:
        """Compare with the limits.

        Args:
            source: one of them; None checks all.

        Raises:
            TooManyBad: a source is over one; the message has counts and the first examples.
        """
        for name in list(self.num_read) if source is None else [source]:
            num_read = self.num_read[name]
            if self.bad_of(name) > self.max_share * num_read:
                raise TooManyBad(
                    f"{name}: {self.bad_of(name)} of {num_read} samples are bad "
                    f"({self.describe(name)}), over the limit of {self.max_share:.2%}; mend the "
                    f"data or raise max_bad_share. First: {_first(self.entries, name)}"
                )
            if self.filtered_of(name) > self.max_filtered * num_read:
                raise TooManyFiltered(
                    f"{name}: {self.filtered_of(name)} of {num_read} samples are filtered out "
                    f"({self.describe(name, is_filter=True)}), over the limit of "
                    f"{self.max_filtered:.2%}; make room for them in the stage "
                    "(policy.max_length, policy.num_targets, max_seconds), take another set, or "
                    f"raise max_filtered_share. First: {_first(self.filtered, name)}"
                )

    def describe(self, source: str, *, is_filter: bool = False) -> str:
        """The counts of a source in words, e.g. `12 media, 3 path`."""
        counts = self._kinds(source, is_filter=is_filter)
        return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"

    def state_dict(self) -> dict[str, Any]:
        """The counts, as JSON values."""
        return {
            "read": dict(self.num_read),
            "bad": [[source, kind, count] for (source, kind), count in self.num_bad.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from a state; the lists of entries start anew."""
        self.num_read = Counter(state["read"])
        self.num_bad = Counter({(source, kind): count for source, kind, count in state["bad"]})
        self.entries, self.filtered = [], []


def _first(entries: Iterable[BadEntry], source: str) -> str:
    examples = [entry for entry in entries if entry.source == source][:3]
    return "; ".join(f"{entry.key}: {entry.message}" for entry in examples)


def write_entries(path: Path, entries: Iterable[BadEntry]) -> None:
    """Write a report, one JSON object a line."""
    with open(path, "w", encoding="utf-8") as stream:
        for entry in entries:
            stream.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")


def read_entries(path: Path) -> list[BadEntry]:
    """Read a report back."""
    with open(path, encoding="utf-8") as stream:
        return [BadEntry(**json.loads(line)) for line in stream]
