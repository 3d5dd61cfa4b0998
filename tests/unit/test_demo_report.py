"""The demonstration's report, from results made by hand; the engine's own are in tests/engine."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vllm_dynin.api import Result
from vllm_dynin.codec_runner import Sound
from vllm_dynin.entrypoints.demo.html import write_report
from vllm_dynin.entrypoints.demo.media_part import MediaResults, RoundTrip, Shown
from vllm_dynin.entrypoints.demo.text_part import Answer, TextResults
from vllm_dynin.report import Report
from vllm_dynin.requests import TextToText

TEXT = TextResults(
    answers=[
        Answer(question="Sort: b a", answer="a b ", expected="a b"),
        Answer(question="Copy: <b>x</b>", answer="y\x1e", expected="<b>x</b>"),
    ],
    fills=["· ·", "a ·", "a b"],
    start_seconds=1.5,
    seconds=2.0,
    tokens=40,
    forwards=16,
)
IMAGE = Image.new("RGB", (8, 8), (9, 8, 7))
SOUND = Sound(np.zeros(1600, np.float32), 16_000)


def shown(*parts, frames=None):
    result = Result(
        request=TextToText("hi"),
        parts=parts,
        token_ids=(1, 2, 3, 4),
        finish_reason="length",
        report=Report(steps=2, forwards=4, queue_seconds=0.25, run_seconds=0.5),
    )
    return Shown(title="a → b", asked="<i>?", inputs=[IMAGE, SOUND], result=result, frames=frames)


MEDIA = MediaResults(
    is_trained=False,
    shown=[shown("text"), shown(IMAGE, "more", frames=[IMAGE, IMAGE]), shown(SOUND)],
    round_trips=[RoundTrip("photograph", IMAGE, IMAGE, "4 codes")],
    start_seconds=3.0,
    seconds=4.0,
    speech_source="a test",
)


def page(tmp_path, text, media):
    pytest.importorskip("vllm", reason="the report names its version")
    write_report(tmp_path / "report.html", text, media)
    return (tmp_path / "report.html").read_text()


def test_text_part(tmp_path) -> None:
    html = page(tmp_path, TEXT, None)
    assert "1 of 2" in html and "2.50 tokens a forward" in html
    assert html.count('class="right"') == html.count('class="wrong"') == 1
    assert "&lt;b&gt;x&lt;/b&gt;" in html and "<b>x</b>" not in html
    assert "y�" in html  # control characters are shown, not sent
    assert "Every direction" not in html


def test_media_part(tmp_path) -> None:
    html = page(tmp_path, None, MEDIA)
    assert "The answers below mean nothing" in html
    assert len(re.findall(r'<section class="card">', html)) == 4
    assert html.count("data:image/gif") == 1 and html.count("<audio") == 4
    assert "2 denoising steps, 4 forwards" in html and "(1.00 a forward)" in html
    assert not re.findall(r'(?:src|href)="(?!data:)', html)  # one file, nothing is fetched


def test_judged_answers_are_counted(tmp_path) -> None:
    judged = [
        Shown(**{**vars(shown("text")), "expected": "seven", "is_right": is_right})
        for is_right in (True, False, None)
    ]
    media = MediaResults(**{**vars(MEDIA), "is_trained": True, "shown": judged})
    assert media.judged == [True, False]
    assert "1 of 2 right" in "\n".join(media.lines())
    html = page(tmp_path, None, media)
    assert "<b>1 of 2</b> answers are right" in html and "expected: seven" in html
    assert html.count('class="right"') == html.count('class="wrong"') == 1


def test_trained_checkpoint_needs_no_warning(tmp_path) -> None:
    trained = MediaResults(**{**vars(MEDIA), "is_trained": True})
    assert "mean nothing" not in page(tmp_path, TEXT, trained)


def test_terminal_lines() -> None:
    lines = TEXT.lines()
    assert sum(line.strip().startswith("✗") for line in lines) == 1
    assert "1 of 2 right to the letter; 40 tokens in 16 forwards (2.50" in lines[-1]
    found = "\n".join(MEDIA.lines())
    assert "3 requests in one batch" in found and "photograph: 4 codes" in found


def test_speech_that_was_not_said(tmp_path) -> None:
    silent = SimpleNamespace(**{**vars(MEDIA), "shown": [shown(Sound(np.zeros(0), 16_000))]})
    assert "(nothing was said)" in page(tmp_path, None, silent)
