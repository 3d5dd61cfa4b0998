"""What a run of the tests left out, in one line each at its end: a plugin of pytest."""

from __future__ import annotations

from collections import Counter
from typing import Any

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

# What collecting left out: by marker, and whole files by reason. Each of several processes collects
# everything, so the counts of one are everybody's.
_marked: Counter[str] = Counter()
_files: Counter[str] = Counter()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count what a marker kept out."""
    for item in items:
        marker = next((name for name in MARKERS if item.get_closest_marker(name)), None)
        if marker is not None:
            _marked[marker] += 1


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Count a file that skips itself."""
    if report.skipped:
        _files[_reason(report)] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In one of several processes: hand the counts to the one that writes."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = dict(_marked), dict(_files)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the counts of a process that has ended."""
    marked, files = getattr(node, "workeroutput", {}).get("left_out", ({}, {}))
    _marked.update(Counter(marked) - _marked)
    _files.update(Counter(files) - _files)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the lines."""
    skipped = Counter(
        _reason(report)
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report, pytest.TestReport) and not hasattr(report, "wasxfail")
    )
    lines = [(_tests(count), reason, count) for reason, count in skipped.items()]
    lines += [
        ("a whole file" if count == 1 else f"{count} files", reason, count)
        for reason, count in _files.items()
    ]
    for amount, reason, _ in sorted(lines, key=lambda line: -line[2]):
        remedy = next((how for words, how in REMEDIES.items() if words in reason), None)
        ending = f" ({remedy})" if remedy else ""
        terminalreporter.write_line(f"left out: {amount}: {reason}{ending}")
    for marker, words in MARKERS.items():
        if _marked[marker]:
            terminalreporter.write_line(f"left out: {_tests(_marked[marker])}: {words}")
    _marked.clear()
    _files.clear()


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    words = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return " ".join(words.removeprefix("Skipped: ").split())


def _tests(count: int) -> str:
    return "1 test" if count == 1 else f"{count} tests"
