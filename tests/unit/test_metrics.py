"""What the metrics are made from: accounts of requests, their transport, and the codec clock."""

from __future__ import annotations

import time

import pytest
import torch

from vllm_dynin.model_executor.reports import ReportBook
from vllm_dynin.planning import PlanRequest, StandardOptions, make_plan
from vllm_dynin.processors.codecs.clock import CodecClock
from vllm_dynin.report import read_report
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.step_counts import StepCounts, pack, unpack


@pytest.fixture
def plan():
    from vllm_dynin.config import LLaDAConfig

    request = PlanRequest(
        prompt_ids=(5, 6), standard=StandardOptions(max_tokens=24), options=DenoiseParams()
    )
    return make_plan(request, LLaDAConfig(vocab_size=126_464))


def test_counts_survive_the_way_to_the_frontend():
    counts = {"t2i": StepCounts(steps=3, waiting=1), "t2t": StepCounts(tokens=7, running=2)}
    assert unpack(pack(counts)) == counts


def test_keys_of_others_are_left_alone():
    assert unpack({"some-adapter": 2, "dynin2/t2t/steps": 1}) == {}


def test_one_request_from_arrival_to_end(plan):
    book = ReportBook()
    book.open("a", DenoiseParams(report=True), plan)
    assert book.take_counts()["t2t"] == StepCounts(waiting=1)
    book.start("a")
    for num_tokens in (0, 16):
        book.count("a", 2)
        book.decide("a", 24, num_tokens)
    book.count("a", 1, is_saved=True)
    book.postpone("a")
    report = read_report(book.close("a", is_complete=True))
    assert report is not None
    assert (report.task, report.mode, report.steps, report.forwards) == ("t2t", "exact", 3, 5)
    assert (report.tokens, report.tokens_per_forward) == (16, pytest.approx(3.2))
    assert 0 <= report.prompt_seconds <= report.run_seconds
    counts = book.take_counts()["t2t"]
    assert counts == StepCounts(
        steps=3,
        positions=48,
        tokens=16,
        conditional_forwards=3,
        unconditional_forwards=2,
        saved_forwards=1,
        skipped_steps=24 - 3,
        postponed_steps=1,
        started=1,
        queue_microseconds=counts.queue_microseconds,
        finished=1,
    )
    assert book.take_counts()["t2t"] == StepCounts()


def test_an_aborted_request_skips_nothing(plan):
    book = ReportBook()
    book.open("a", DenoiseParams(), plan)
    assert book.close("a", is_complete=False) is None
    assert book.take_counts()["t2t"] == StepCounts()


def test_a_preempted_request_waits_again(plan):
    book = ReportBook()
    book.open("a", DenoiseParams(), plan)
    book.start("a")
    book.requeue("a")
    counts = book.take_counts()["t2t"]
    assert (counts.waiting, counts.running, counts.started) == (1, 0, 1)
    assert counts.preemptions == 1
    book.start("a")
    counts = book.take_counts()["t2t"]
    assert (counts.waiting, counts.running, counts.started) == (0, 1, 0)


def test_tokens_of_a_request_that_is_gone_are_dropped():
    ReportBook().decide("gone", 4, 4)


def test_codec_clock():
    clock = CodecClock()
    for _ in range(2):
        with clock.timed("image", torch.device("cpu")):
            time.sleep(0.01)
    media, seconds = clock.take()["image"]
    assert media == 2
    assert seconds >= 0.02
    assert clock.take() == {}
