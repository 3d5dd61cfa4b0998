"""`vllm-dynin demo` as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.engines import ENVIRONMENT

import vllm_dynin


def demo(tmp_path: Path, *arguments: str) -> tuple[str, str]:
    """Terminal output and report."""
    report = tmp_path / "report.html"
    command = [sys.executable, "-m", "vllm_dynin.entrypoints.cli", "demo", *arguments]
    done = subprocess.run(
        [*command, "--output", str(report)],
        cwd=Path(vllm_dynin.__file__).parents[1],
        env=os.environ | ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "WARNING" not in done.stderr and "Traceback" not in done.stderr
    return done.stdout, report.read_text()


def test_every_direction_in_one_batch(tmp_path) -> None:
    pytest.importorskip("sklearn", reason="the demonstration's pictures")
    printed, report = demo(tmp_path, "--only", "media")
    for direction in ("text → text", "image → text", "video → text", "speech → text"):
        assert direction in printed
    for direction in ("text → image", "image → image", "text → speech"):
        assert direction in report
    right, asked = map(int, re.search(r"(\d+) of (\d+) right", printed).groups())
    assert "17 requests in one batch" in printed
    assert asked == 17 and right >= 0.8 * asked  # unseen digits, recordings and combinations
    assert len(re.findall(r"\d+ denoising steps, \d+ forwards", report)) == 17
    assert f"<b>{right} of 17</b> answers are right" in report
    assert "data:image/gif" in report and "data:audio/wav" in report


def test_trained_text_model(tmp_path) -> None:
    printed, report = demo(tmp_path, "--only", "text")
    right, asked = map(int, re.search(r"(\d+) of (\d+) right to the letter", printed).groups())
    assert asked == 18 and right >= 0.9 * asked  # two each of three tasks and three lengths
    assert report.count("<tr>") == asked + 1
