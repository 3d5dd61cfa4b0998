"""What a run of the tests left out, in one line each at its end: a plugin of pytest."""

from __future__ import annotations

from collections import Counter

import pytest

# Words of a reason → how to have it. Reasons without an entry stand for themselves.
REMEDIES = {
    "Chromium": "apt-get install chromium",
    "flite": "apt-get install flite",
    "pocketsphinx-testdata": "apt-get install pocketsphinx-testdata",
    "requirements/eval.lock": "make judges",
}
# Markers that `make test` leaves out, and what runs them.
MARKERS = {
    "gpu": "a CUDA device is needed",
    "weights": "the published 8B checkpoint is needed",
    "slow": "slow (make test-all)",
}

_marked: Counter[str] = Counter()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count what a marker kept out."""
    for item in items:
        marker = next((name for name in MARKERS if item.get_closest_marker(name)), None)
        if marker is not None:
            _marked[marker] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the lines."""
    skipped: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        if hasattr(report, "wasxfail"):
            continue
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = " ".join(reason.removeprefix("Skipped: ").split())
        is_file = isinstance(report, pytest.CollectReport)
        skipped[f"{'a whole file' if is_file else ''}|{reason}"] += 1
    for key, count in sorted(skipped.items(), key=lambda pair: -pair[1]):
        what, _, reason = key.partition("|")
        remedy = next((how for words, how in REMEDIES.items() if words in reason), None)
        amount = what if what and count == 1 else f"{count} files" if what else _tests(count)
        ending = f" ({remedy})" if remedy else ""
        terminalreporter.write_line(f"left out: {amount}: {reason}{ending}")
    for marker, words in MARKERS.items():
        if _marked[marker]:
            terminalreporter.write_line(f"left out: {_tests(_marked[marker])}: {words}")
    _marked.clear()


def _tests(count: int) -> str:
    return "1 test" if count == 1 else f"{count} tests"
