"""Part 2: every direction on real input, through one engine, in one batch."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vllm_dynin.api import Result, checkpoint_of, generate
from vllm_dynin.checkpoint import load_config
from vllm_dynin.codec_runner import CodecRunner, Sound
from vllm_dynin.entrypoints.demo.engine import engine
from vllm_dynin.entrypoints.demo.questions import (
    Inputs,
    Medium,
    Question,
    general_questions,
    inputs_of,
)
from vllm_dynin.entrypoints.demo.samples import load_samples
from vllm_dynin.entrypoints.demo.tiny_questions import tiny_questions
from vllm_dynin.entrypoints.stand_in import write_stand_in
from vllm_dynin.processors.codecs.image_io import resize_and_crop
from vllm_dynin.processors.codecs.speech import collapse
from vllm_dynin.processors.codecs.video import load_frames
from vllm_dynin.processors.media import AUDIO_RATE, codec_patch

CHECKPOINT = Path(__file__).parents[2] / "assets" / "dynin-tiny"
"""The trained checkpoint with media that ships with the package; a stand-in where it is missing."""

MAX_ROWS = 2_048


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """A medium before and after its codec.

    Args:
        name: of the medium.
        before: as the model is given it: an image, frames side by side, or sound.
        after: decoded from its codes.
        figure: how much came back, in words.
    """

    name: str
    before: Image.Image | Sound
    after: Image.Image | Sound
    figure: str


@dataclass(frozen=True, eq=False)
class Shown:
    """One request of the batch.

    Args:
        title: the direction.
        asked: the text of the request.
        inputs: its media.
        result: the answer.
        frames: the answer's image as it filled in, where that was kept.
        expected: the right answer in words, where there is one.
        is_right: whether the answer is right; None where nobody can say.
    """

    title: str
    asked: str
    inputs: list[Medium]
    result: Result
    frames: list[Image.Image] | None = None
    expected: str = ""
    is_right: bool | None = None


@dataclass(frozen=True, eq=False)
class MediaResults:
    """What part 2 shows.

    Args:
        is_trained: whether the answers mean anything.
        shown: the requests, in order.
        round_trips: of the inputs.
        start_seconds: of the engine.
        seconds: from the first request to the last decoded answer.
        speech_source: where the recording comes from.
    """

    is_trained: bool
    shown: list[Shown]
    round_trips: list[RoundTrip]
    start_seconds: float
    seconds: float
    speech_source: str

    @property
    def judged(self) -> list[bool]:
        """Right or wrong, for the answers about which that can be said."""
        return [shown.is_right for shown in self.shown if shown.is_right is not None]

    def lines(self) -> list[str]:
        """The results as text for a terminal."""
        found = [_line(shown) for shown in self.shown]
        right = f", {sum(self.judged)} of {len(self.judged)} right" if self.judged else ""
        trips = [f"  {trip.name}: {trip.figure}" for trip in self.round_trips]
        return [
            f"  {'direction':18} {'steps':>5} {'forwards':>8} {'tokens':>6} {'tokens/forward':>14} "
            f"{'seconds':>7}",
            *found,
            "",
            f"  {len(self.shown)} requests in one batch, answered and decoded in "
            f"{self.seconds:.1f} s{right}",
            "",
            "  What is left of the inputs after their codecs:",
            *trips,
        ]


def run(checkpoint: Path | None = None) -> MediaResults:
    """Ask for every direction at once.

    Args:
        checkpoint: folder of a trained one, which is asked general questions; None takes
            `CHECKPOINT` where it exists, which is asked about its world and judged, else a
            stand-in of random weights, written to a temporary folder.

    Raises:
        ValueError: the packages with pictures are not installed.
    """
    questions, inputs = _questions(checkpoint)
    with _checkpoint(checkpoint) as (folder, is_trained):
        rows = min(MAX_ROWS, load_config(folder).max_sequence_length)
        sizes = {"max_model_len": rows, "max_num_batched_tokens": 4 * rows}
        options = {**sizes, "max_num_seqs": len(questions), "block_size": 32}
        with engine(folder, **options) as (llm, start_seconds):
            started = time.monotonic()
            results = generate(llm, [question.request for question in questions])
            seconds = time.monotonic() - started
            known = checkpoint_of(llm)
            config = known.media_config
            sides = (config.image_resolution, config.video_resolution)
            round_trips = list(_round_trips(inputs, known.codecs, *sides))
            assert known.folders.image is not None
            patch = codec_patch(known.folders.image)
    return MediaResults(
        is_trained=is_trained,
        shown=[_shown(*pair, patch) for pair in zip(questions, results, strict=True)],
        round_trips=round_trips,
        start_seconds=start_seconds,
        seconds=seconds,
        speech_source=inputs.speech_source,
    )


def _questions(checkpoint: Path | None) -> tuple[list[Question], Inputs]:
    if checkpoint is None and CHECKPOINT.is_dir():
        return tiny_questions(load_config(CHECKPOINT).vocabulary)
    samples = load_samples()
    return general_questions(samples), inputs_of(samples)


@contextmanager
def _checkpoint(given: Path | None) -> Iterator[tuple[Path, bool]]:
    """The checkpoint to run, and whether it is trained."""
    if given is not None:
        yield given, True
    elif CHECKPOINT.is_dir():
        yield CHECKPOINT, True
    else:
        with tempfile.TemporaryDirectory(prefix="vllm-dynin-") as folder:
            yield write_stand_in(Path(folder) / "stand-in"), False


def _shown(question: Question, result: Result, patch: int) -> Shown:
    return Shown(
        title=question.title,
        asked=question.asked,
        inputs=list(question.inputs),
        result=result,
        frames=_frames(result, patch),
        expected=question.expected,
        is_right=None if question.is_right is None else question.is_right(result),
    )


def _frames(result: Result, patch: int) -> list[Image.Image] | None:
    if result.trajectory is None or result.image is None:
        return None
    return list(result.trajectory.image_frames(result.image, patch))


def _line(shown: Shown) -> str:
    result = shown.result
    report = result.report
    sign = {True: "✓", False: "✗", None: " "}[shown.is_right]
    if report is None:
        return f"{sign} {shown.title:18} no report"
    answer = f"  {(result.text or '').strip()}" if shown.is_right is not None else ""
    if shown.is_right is False:
        answer += f"  expected: {shown.expected}"
    return (
        f"{sign} {shown.title:18} {report.steps:5} {report.forwards:8} {len(result.token_ids):6} "
        f"{result.tokens_per_forward or 0:14.2f} {report.queue_seconds + report.run_seconds:7.2f}"
        f"{answer}"
    )


def _round_trips(
    inputs: Inputs, codecs: CodecRunner, image_side: int, video_side: int
) -> Iterator[RoundTrip]:
    for name, image in inputs.images.items():
        before = resize_and_crop(image, image_side, image_side)
        codes = codecs.encode_image(before)
        after = codecs.decode_image(codes, image_side, image_side).result()
        figure = f"{len(codes)} codes for {image_side}×{image_side} pixels, {_psnr(before, after)}"
        yield RoundTrip(name, before, after, figure)
    frames = load_frames(inputs.clip, 5, video_side)
    decoded = [
        codecs.decode_image(codecs.encode_image(frame), video_side, video_side).result()
        for frame in frames
    ]
    before, after = _side_by_side(frames), _side_by_side(decoded)
    figure = f"{len(frames)} frames of {video_side}×{video_side} pixels, {_psnr(before, after)}"
    yield RoundTrip("clip", before, after, figure)
    waveform = inputs.speech.waveform
    assert inputs.speech.sample_rate == AUDIO_RATE
    raw = codecs.encode_speech(waveform)
    units = collapse(raw)
    spoken = codecs.decode_speech(units, seed=0).result()
    figure = (
        f"{len(units)} units ({len(raw)} before repeats are dropped) for "
        f"{inputs.speech.seconds:.1f} s; spoken again: {spoken.seconds:.1f} s"
    )
    yield RoundTrip("speech", inputs.speech, spoken, figure)


def _side_by_side(frames: list[Image.Image]) -> Image.Image:
    return Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames], axis=1))


def _psnr(before: Image.Image, after: Image.Image) -> str:
    error = np.asarray(before, np.float64) - np.asarray(after, np.float64)
    mean = float(np.mean(error**2))
    return "exact" if mean == 0 else f"PSNR {10 * np.log10(255**2 / mean):.1f} dB"
