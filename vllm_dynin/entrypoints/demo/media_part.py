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
from vllm_dynin.codec_runner import CodecRunner, Sound
from vllm_dynin.entrypoints.demo.engine import engine
from vllm_dynin.entrypoints.demo.samples import Samples
from vllm_dynin.entrypoints.stand_in import write_stand_in
from vllm_dynin.processors.codecs.image_io import resize_and_crop
from vllm_dynin.processors.codecs.speech import collapse
from vllm_dynin.processors.codecs.video import load_frames
from vllm_dynin.processors.media import AUDIO_RATE, codec_patch
from vllm_dynin.requests import (
    EditImage,
    ImageToText,
    Inpaint,
    MixedAnswer,
    Request,
    SpeechToSpeech,
    SpeechToText,
    TextToImage,
    TextToSpeech,
    TextToText,
    VideoToSpeech,
    VideoToText,
)
from vllm_dynin.sampling.params import DenoiseParams

CHECKPOINT = Path(__file__).parents[2] / "assets" / "dynin-tiny"
"""A trained checkpoint with media, once there is one; a stand-in takes its place until then."""

MAX_ROWS = 2_048
_SEED = 7


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
    """

    title: str
    asked: str
    inputs: list[Image.Image | Sound | list[Image.Image]]
    result: Result
    frames: list[Image.Image] | None = None


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

    def lines(self) -> list[str]:
        """The results as text for a terminal."""
        found = [_line(shown) for shown in self.shown]
        trips = [f"  {trip.name}: {trip.figure}" for trip in self.round_trips]
        return [
            f"  {'direction':18} {'steps':>5} {'forwards':>8} {'tokens':>6} {'tokens/forward':>14} "
            f"{'seconds':>7}",
            *found,
            "",
            f"  {len(self.shown)} requests in one batch, answered and decoded in "
            f"{self.seconds:.1f} s",
            "",
            "  What is left of the inputs after their codecs:",
            *trips,
        ]


def run(samples: Samples, checkpoint: Path | None = None) -> MediaResults:
    """Ask for every direction at once.

    Args:
        samples: the inputs.
        checkpoint: folder of a trained one; None takes `CHECKPOINT` where it exists, else a
            stand-in of random weights, written to a temporary folder.
    """
    requests = _requests(samples)
    with _checkpoint(checkpoint) as (folder, is_trained):
        sizes = {"max_model_len": MAX_ROWS, "max_num_batched_tokens": 4 * MAX_ROWS}
        options = {**sizes, "max_num_seqs": len(requests), "block_size": 32}
        with engine(folder, **options) as (llm, start_seconds):
            started = time.monotonic()
            results = generate(llm, [request for _, _, request in requests])
            seconds = time.monotonic() - started
            known = checkpoint_of(llm)
            config = known.media_config
            sides = (config.image_resolution, config.video_resolution)
            round_trips = list(_round_trips(samples, known.codecs, *sides))
            assert known.folders.image is not None
            patch = codec_patch(known.folders.image)
    inputs = _inputs(samples)
    shown = [
        Shown(
            title=title,
            asked=asked,
            inputs=inputs.get(type(result.request), []),
            result=result,
            frames=_frames(result, patch),
        )
        for (title, asked, _), result in zip(requests, results, strict=True)
    ]
    return MediaResults(
        is_trained=is_trained,
        shown=shown,
        round_trips=round_trips,
        start_seconds=start_seconds,
        seconds=seconds,
        speech_source=samples.speech_source,
    )


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


def _requests(samples: Samples) -> list[tuple[str, str, Request]]:
    """Title, text and request: the seven directions, and mixtures of them."""
    photo, speech = samples.photo, (samples.speech.waveform, samples.speech.sample_rate)
    mask = _middle(photo)
    image = DenoiseParams(steps=16)
    few = DenoiseParams(steps=16, text_tokens=24)
    voice = DenoiseParams(style="gender-female")
    ask = "Reverse these words: cat tree moon"
    see, watch = "What is in the picture?", "What happens in the clip?"
    draw, say = "a photo of the digit 7", "Masked diffusion speaks."
    edit, paint, both = "Make it look like a drawing", "a portrait", "Change it, and say how"
    seed = _SEED
    return [
        ("text → text", ask, TextToText(ask, max_tokens=32)),
        ("image → text", see, ImageToText(samples.digit, see, max_tokens=32)),
        ("video → text", watch, VideoToText(samples.clip, watch, max_tokens=32)),
        ("speech → text", "(transcribe)", SpeechToText(speech, max_tokens=32)),
        (
            "text → image",
            draw,
            TextToImage(draw, options=image, seed=seed, trajectory=True),
        ),
        ("image → image", edit, EditImage(photo, edit, options=image, seed=seed)),
        (
            "text → speech",
            say,
            TextToSpeech(say, options=voice, max_tokens=64, seed=seed),
        ),
        (
            "inpainting",
            f"{paint} (the middle is painted anew)",
            Inpaint(photo, mask, paint, options=image, seed=seed, trajectory=True),
        ),
        ("mixed answer", both, MixedAnswer(photo, both, options=few, seed=seed)),
        ("speech → speech", "(answer)", SpeechToSpeech(speech, max_tokens=64, seed=seed)),
        ("video → speech", watch, VideoToSpeech(samples.clip, watch, max_tokens=64, seed=seed)),
    ]


def _inputs(samples: Samples) -> dict[type[Request], list[Image.Image | Sound | list[Image.Image]]]:
    clip: list[Image.Image] = [Image.fromarray(frame).resize((192, 192)) for frame in samples.clip]
    masked = samples.photo.copy()
    masked.paste((255, 255, 255), mask=_middle(samples.photo))
    return {
        ImageToText: [samples.digit],
        VideoToText: [clip],
        SpeechToText: [samples.speech],
        EditImage: [samples.photo],
        Inpaint: [masked],
        MixedAnswer: [samples.photo],
        SpeechToSpeech: [samples.speech],
        VideoToSpeech: [clip],
    }


def _middle(image: Image.Image) -> Image.Image:
    """A mask over the middle quarter of an image."""
    mask = Image.new("L", image.size, 0)
    width, height = image.size
    mask.paste(255, (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
    return mask


def _frames(result: Result, patch: int) -> list[Image.Image] | None:
    if result.trajectory is None or result.image is None:
        return None
    return list(result.trajectory.image_frames(result.image, patch))


def _line(shown: Shown) -> str:
    result = shown.result
    report = result.report
    if report is None:
        return f"  {shown.title:18} no report"
    return (
        f"  {shown.title:18} {report.steps:5} {report.forwards:8} {len(result.token_ids):6} "
        f"{result.tokens_per_forward or 0:14.2f} {report.queue_seconds + report.run_seconds:7.2f}"
    )


def _round_trips(
    samples: Samples, codecs: CodecRunner, image_side: int, video_side: int
) -> Iterator[RoundTrip]:
    for name, image in (("photograph", samples.photo), ("digit", samples.digit)):
        before = resize_and_crop(image, image_side, image_side)
        codes = codecs.encode_image(before)
        after = codecs.decode_image(codes, image_side, image_side).result()
        figure = f"{len(codes)} codes for {image_side}×{image_side} pixels, {_psnr(before, after)}"
        yield RoundTrip(name, before, after, figure)
    frames = load_frames(samples.clip, 5, video_side)
    decoded = [
        codecs.decode_image(codecs.encode_image(frame), video_side, video_side).result()
        for frame in frames
    ]
    before, after = _side_by_side(frames), _side_by_side(decoded)
    figure = f"{len(frames)} frames of {video_side}×{video_side} pixels, {_psnr(before, after)}"
    yield RoundTrip("clip", before, after, figure)
    waveform = samples.speech.waveform
    assert samples.speech.sample_rate == AUDIO_RATE
    raw = codecs.encode_speech(waveform)
    units = collapse(raw)
    spoken = codecs.decode_speech(units, seed=0).result()
    figure = (
        f"{len(units)} units ({len(raw)} before repeats are dropped) for "
        f"{samples.speech.seconds:.1f} s; spoken again: {spoken.seconds:.1f} s"
    )
    yield RoundTrip("speech", samples.speech, spoken, figure)


def _side_by_side(frames: list[Image.Image]) -> Image.Image:
    return Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames], axis=1))


def _psnr(before: Image.Image, after: Image.Image) -> str:
    error = np.asarray(before, np.float64) - np.asarray(after, np.float64)
    mean = float(np.mean(error**2))
    return "exact" if mean == 0 else f"PSNR {10 * np.log10(255**2 / mean):.1f} dB"
