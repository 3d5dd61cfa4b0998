"""What a run says for docs/compatibility.md: date, machine, versions, results.

    python packaging/compat/report.py newest|compat LOG REQUIREMENTS

LOG is pytest's output, or a folder of such files (`*.log`). REQUIREMENTS names the packages whose
installed versions are told, a requirement to a line.
"""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULT = re.compile(
    r"^=*\s*((?:\d+ (?:failed|passed|skipped|errors?|deselected|xfailed|warnings?),? ?)+in [\d.]+s)"
)
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


def versions(requirements: Path) -> list[str]:
    """`name version` of each requirement that is installed."""
    found = {}
    for line in requirements.read_text().splitlines():
        match = re.match(r"[A-Za-z0-9._-]+", line)
        if match:
            try:
                found[match[0].lower()] = version(match[0])
            except PackageNotFoundError:
                found[match[0].lower()] = "not installed"
    return [f"{name} {number}" for name, number in sorted(found.items())]


def commit() -> str:
    """The tree's commit, marked where files were changed since."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def report(kind: str, log: Path, requirements: Path) -> str:
    """Markdown. A folder of logs is told log by log."""
    lines = [
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, commit {commit()}, "
        f"Python {platform.python_version()}, {platform.machine()}, CPU only."
    ]
    for path in sorted(log.glob("*.log")) if log.is_dir() else [log]:
        text = path.read_text(errors="replace")
        results = [match[1] for line in text.splitlines() if (match := RESULT.match(line))]
        last = text.strip().splitlines()[-1:] or ["nothing"]
        lines.append(f"- {path.stem}: {'; '.join(results) or last[0]}")
        lines += [f"    - `{name}`" for name in re.findall(FAILED, text)]
    lines.append(f"- Versions: {', '.join(versions(requirements))}.")
    command = "test-newest" if kind == "newest" else kind
    return f"`make {command}`:\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(report(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
