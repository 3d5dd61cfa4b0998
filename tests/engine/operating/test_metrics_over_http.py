"""`/metrics` after requests whose cost is known."""

from __future__ import annotations

import io
import time

import pytest
from helpers.prometheus import Metrics
from PIL import Image

from vllm_dynin.report import REPORT


def png(side=64):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (30, 90, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def grown(http, name, before, **labels):
    return Metrics(http)(name, **labels) - before(name, **labels)


def test_a_text_request(http):
    before = Metrics(http)
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 32,
        "temperature": 0,
        "ignore_eos": True,
        "vllm_xargs": {"dynin_steps": 16, "dynin_report": True},
    }
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    report = answer.json()["kv_transfer_params"][REPORT]
    assert (report["steps"], report["forwards"], report["tokens"]) == (16, 16, 32)
    assert (report["tokens_per_forward"], report["task"], report["mode"]) == (2.0, "t2t", "exact")
    assert 0 <= report["prompt_seconds"] <= report["run_seconds"]
    for name, value in {
        "dynin:denoising_steps_total": 16,
        "dynin:conditional_forwards_total": 16,
        "dynin:unconditional_forwards_total": 0,
        "dynin:tokens_total": 32,
        "dynin:started_requests_total": 1,
        "dynin:finished_requests_total": 1,
        "dynin:skipped_steps_total": 0,
    }.items():
        assert grown(http, name, before, direction="t2t") == value, name
    assert grown(http, "vllm:diffusion_num_denoising_steps_total", before) == 16
    assert grown(http, "vllm:diffusion_num_committed_tokens_total", before) == 32
    # Two tokens a step in two blocks of 16: undecided slots until the whole block is given out.
    positions = grown(http, "vllm:diffusion_num_canvas_positions_total", before)
    assert positions == 8 * 32 + 8 * 16


def test_a_guided_image(http):
    before = Metrics(http)
    body = {"prompt": "a cat", "num_inference_steps": 4, "vllm_xargs": {"dynin_report": True}}
    answer = http.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    (report,) = answer.json()[REPORT]
    assert (report["steps"], report["forwards"], report["task"]) == (4, 8, "t2i")
    assert grown(http, "dynin:conditional_forwards_total", before, direction="t2i") == 4
    assert grown(http, "dynin:unconditional_forwards_total", before, direction="t2i") == 4
    assert grown(http, "dynin:decoding_seconds_count", before, codec="image") == 1
    assert grown(http, "dynin:decoding_seconds_sum", before, codec="image") > 0
    now = Metrics(http)
    for name in ("dynin:requests_running", "dynin:requests_waiting"):
        assert now(name, direction="t2i") == 0


def test_speech_counts_saved_forwards(http):
    """The second stream of speech guidance never changes: it is computed once."""
    before = Metrics(http)
    body = {
        "input": "hello",
        "response_format": "wav",
        "max_tokens": 16,
        "num_inference_steps": 8,
        "seed": 1,
    }
    assert http.post("/v1/audio/speech", json=body).status_code in (200, 422)  # 422: no units
    assert grown(http, "dynin:unconditional_forwards_total", before, direction="t2s") == 1
    steps = grown(http, "dynin:denoising_steps_total", before, direction="t2s")
    assert 1 <= steps <= 8
    assert grown(http, "dynin:saved_forwards_total", before, direction="t2s") == steps - 1
    # What the answer's end left over of the steps that were asked for.
    assert grown(http, "dynin:skipped_steps_total", before, direction="t2s") == 8 - steps


def test_encoding_times_come_from_the_worker(http):
    before = Metrics(http)
    form = {"prompt": "make it blue", "num_inference_steps": "2"}
    answer = http.post("/v1/images/edits", data=form, files={"image": ("a.png", png())})
    assert answer.status_code == 200, answer.text
    end = time.monotonic() + 30
    while not grown(http, "dynin:encoded_media_total", before, codec="image"):
        assert time.monotonic() < end, "the frontend never asked the worker"
        time.sleep(0.5)
    assert grown(http, "dynin:encoding_seconds_total", before, codec="image") > 0


@pytest.mark.parametrize("prefix", ["vllm:spec_decode"])
def test_nothing_is_called_a_draft(http, prefix):
    assert not [name for name in Metrics(http).names() if name.startswith(prefix)]
