"""pytest plugin: a test that is skipped for a reason nobody named is a failure.

    PYTHONPATH=packaging/compat python -m pytest -p expected_skips --may-skip vllm --may-skip gpu …

A skip that nobody reads hides what it skips: with a dependency missing, the tests of what it broke
are silent. `--may-skip` names the reasons below that hold for the environment at hand; every skip
is counted under its reason in the last lines, and one without is an error.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

REASONS = {
    "vllm": r"vLLM|vllm|part of the server|part of the engine|report names its version|triton is",
    "gpu": r"CUDA|GPU|reference parity of a GPU",
    "judges": r"requirements/eval\.lock",
    "python": r"the script wants Python 3\.11",
    "page": r"Chromium|playwright",
    "machine": r"memory nodes|package .* is missing|flite|needs Linux|cores",
    "ray": r"Ray is installed",
    "version": r"this vLLM|of vLLM 0\.",
}
ALWAYS = ("python",)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--may-skip", action="append", default=[], choices=sorted(REASONS), help="see the module"
    )


class Skips:
    def __init__(self, allowed: list[str]) -> None:
        self.allowed = [*ALWAYS, *allowed]
        self.found: dict[str, Counter[str]] = {}

    def reason(self, text: str) -> str | None:
        return next((name for name in self.allowed if re.search(REASONS[name], text)), None)

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        text = text.removeprefix("Skipped: ")
        name = self.reason(text) or "NOT EXPECTED"
        self.found.setdefault(name, Counter())[f"{report.nodeid.split('::')[0]}: {text}"] += 1

    pytest_runtest_logreport = note
    pytest_collectreport = note

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for name, lines in sorted(self.found.items()):
            terminalreporter.section(f"skipped ({name}): {sum(lines.values())}")
            for line, count in sorted(lines.items()):
                terminalreporter.line(f"{count} × {line}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if "NOT EXPECTED" in self.found and session.exitstatus in (0, 5):
            session.exitstatus = 1


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Skips(config.getoption("--may-skip")), "dynin-skips")
