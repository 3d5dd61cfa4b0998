"""Recordings in pieces, and their transcripts in five formats."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("vllm", reason="the routes are part of the server")

from vllm_dynin.entrypoints.http.segments import Segment, Transcribed, cut, joined, transcript
from vllm_dynin.processors.media import AUDIO_RATE

NOISE = np.random.default_rng(0).normal(0, 0.1, 70 * AUDIO_RATE).astype(np.float32)


def piece(start, stop, text):
    samples = np.ones(round((stop - start) * AUDIO_RATE), np.float32)
    segment = Segment(samples=samples, start=start)
    return Transcribed(segment=segment, text=text, token_ids=(5, 6), mean_logprob=-0.25)


FOUND = [piece(0, 1.5, "Good morning."), piece(1.5, 2, ""), piece(2, 3_661.25, "And good night.")]


def test_short_recordings_stay_whole():
    (segment,) = cut(NOISE[: 30 * AUDIO_RATE], 30.0)
    assert (segment.start, segment.end) == (0.0, 30.0)


def test_cuts_are_made_at_quiet_places_and_lose_nothing():
    samples = NOISE.copy()
    quiet = [slice(round(s * AUDIO_RATE), round((s + 0.2) * AUDIO_RATE)) for s in (29.4, 58.9)]
    for span in quiet:
        samples[span] = 1e-6
    segments = cut(samples, 30.0)
    np.testing.assert_array_equal(np.concatenate([s.samples for s in segments]), samples)
    for segment, span in zip(segments[1:], quiet, strict=True):
        assert span.start <= segment.start * AUDIO_RATE <= span.stop
    assert [s.end for s in segments[:-1]] == [s.start for s in segments[1:]]
    assert all(len(s.samples) <= 30 * AUDIO_RATE for s in segments)


def test_silence():
    def sound(amplitude):
        return np.tile(np.array([amplitude, -amplitude], np.float32), 800)

    assert Segment(samples=np.zeros(9, np.float32), start=0).is_silent
    assert Segment(samples=sound(5e-4), start=0).is_silent  # hiss, -66 dBFS
    assert not Segment(samples=sound(5e-3), start=0).is_silent


def test_formats():
    text = "Good morning. And good night."
    assert joined([each.text for each in FOUND]) == text
    assert transcript(FOUND, "text", 0.0) == text + "\n"
    assert transcript(FOUND, "json", 0.0) == {
        "text": text,
        "usage": {"type": "duration", "seconds": 3_662},
    }
    assert transcript(FOUND, "srt", 0.0) == (
        "1\n00:00:00,000 --> 00:00:01,500\nGood morning.\n\n"
        "2\n00:00:02,000 --> 01:01:01,250\nAnd good night.\n\n"
    )
    assert transcript(FOUND, "vtt", 0.0) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nGood morning.\n\n"
        "00:00:02.000 --> 01:01:01.250\nAnd good night.\n\n"
    )


def test_verbose_json():
    verbose = transcript(FOUND, "verbose_json", 0.3)
    assert verbose["duration"] == 3_661.25
    first, second, _ = verbose["segments"]
    assert (first["start"], first["end"], first["tokens"]) == (0, 1.5, [5, 6])
    assert (first["avg_logprob"], first["temperature"]) == (-0.25, 0.3)
    assert second["compression_ratio"] == 1.0
    assert second["seek"] == 150
