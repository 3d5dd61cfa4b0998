"""What media workers needed: memory measured in each of them, see `worker_peaks`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "worker_peaks"


def variables(target: Path) -> Mapping[str, str]:
    """Environment variables of a program whose workers write to a file."""
    path = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "WORKER_PEAKS_FILE": str(target)}


@dataclass(frozen=True)
class Peaks:
    """What was written.

    Args:
        started: workers.
        ended: those that came to their end, refusals included; the others were killed or crashed.
        most: bytes of the largest.
    """

    started: int
    ended: int
    most: int


def read(target: Path, worker: str) -> Peaks:
    """What the workers of one name wrote."""
    lines = [line.split() for line in target.read_text().splitlines()] if target.exists() else []
    mine = [line for line in lines if line[1] == worker]
    peaks = [1024 * int(line[3]) for line in mine if line[0] == "end"]
    return Peaks(len(mine) - len(peaks), len(peaks), max(peaks, default=0))
