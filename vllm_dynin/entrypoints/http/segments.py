"""A recording in pieces short enough for one prompt, and its transcript in five formats."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from vllm.multimodal.audio import split_audio

from vllm_dynin.processors.codecs.silence import is_silence
from vllm_dynin.processors.media import AUDIO_RATE

TranscriptFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]

MAX_SEGMENT_SECONDS = 30.0
"""Longest piece of a recording that is transcribed as one."""
_SEARCH_SECONDS = 3.0
"""A cut is made at the quietest place of so many seconds at the end of a piece."""
_WINDOW = AUDIO_RATE // 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """A piece of a recording.

    Args:
        samples: float32 [N] at `AUDIO_RATE`.
        start: in seconds from the start of the recording.
    """

    samples: NDArray[np.float32]
    start: float

    @property
    def end(self) -> float:
        """Where it ends, in seconds from the start of the recording."""
        return self.start + len(self.samples) / AUDIO_RATE

    @property
    def is_silent(self) -> bool:
        """Whether there is nothing to be heard in it, so that there is nothing to ask about."""
        return is_silence(self.samples, AUDIO_RATE)


def cut(samples: NDArray[np.float32], max_seconds: float) -> list[Segment]:
    """Cut a recording at quiet places.

    Args:
        samples: float32 [N] at `AUDIO_RATE`.
        max_seconds: of one piece.
    """
    if len(samples) <= max_seconds * AUDIO_RATE:
        return [Segment(samples=samples, start=0.0)]
    pieces = split_audio(
        audio_data=samples,
        sample_rate=AUDIO_RATE,
        max_clip_duration_s=max_seconds,
        overlap_duration_s=min(_SEARCH_SECONDS, max_seconds / 2),
        min_energy_window_size=_WINDOW,
    )
    found, position = [], 0
    for piece in pieces:
        found.append(Segment(samples=piece, start=position / AUDIO_RATE))
        position += len(piece)
    return found


@dataclass(frozen=True, kw_only=True)
class Transcribed:
    """A transcribed piece.

    Args:
        segment: the piece.
        text: what was said in it, stripped.
        token_ids: of the text.
        mean_logprob: of the tokens; 0 where there are none.
    """

    segment: Segment
    text: str
    token_ids: Sequence[int] = ()
    mean_logprob: float = 0.0


def joined(texts: Sequence[str]) -> str:
    """The text of a recording from those of its pieces."""
    return " ".join(text for text in texts if text)


def transcript(
    found: Sequence[Transcribed], transcript_format: TranscriptFormat, temperature: float
) -> str | dict[str, Any]:
    """A transcript as it is answered: an object for the JSON formats, else text.

    Args:
        found: the pieces, in order.
        transcript_format: of the answer.
        temperature: of the request, which `verbose_json` repeats.
    """
    text = joined([piece.text for piece in found])
    if transcript_format == "text":
        return text + "\n"
    if transcript_format == "srt":
        return _subtitles(found, head="", comma=",", is_numbered=True)
    if transcript_format == "vtt":
        return _subtitles(found, head="WEBVTT\n\n", comma=".", is_numbered=False)
    seconds = found[-1].segment.end
    usage = {"type": "duration", "seconds": math.ceil(seconds)}
    if transcript_format == "json":
        return {"text": text, "usage": usage}
    return {
        "task": "transcribe",
        "language": "en",
        "duration": seconds,
        "text": text,
        "segments": [
            _segment_object(index, piece, temperature) for index, piece in enumerate(found)
        ],
        "usage": usage,
    }


def _segment_object(index: int, piece: Transcribed, temperature: float) -> dict[str, Any]:
    data = piece.text.encode()
    return {
        "id": index,
        "seek": round(piece.segment.start * 100),
        "start": round(piece.segment.start, 3),
        "end": round(piece.segment.end, 3),
        "text": piece.text,
        "tokens": list(piece.token_ids),
        "temperature": temperature,
        "avg_logprob": piece.mean_logprob,
        "compression_ratio": len(data) / len(zlib.compress(data)) if data else 1.0,
        # The model gives no probability that nothing was said; silence is found in the samples.
        "no_speech_prob": 1.0 if piece.segment.is_silent else 0.0,
    }


def _subtitles(found: Sequence[Transcribed], *, head: str, comma: str, is_numbered: bool) -> str:
    cues = []
    for number, piece in enumerate((piece for piece in found if piece.text), 1):
        times = (_clock(seconds, comma) for seconds in (piece.segment.start, piece.segment.end))
        title = f"{number}\n" if is_numbered else ""
        cues.append(f"{title}{' --> '.join(times)}\n{piece.text}\n\n")
    return head + "".join(cues)


def _clock(seconds: float, comma: str) -> str:
    total = round(seconds * 1000)
    minutes, milliseconds = divmod(total, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{comma}{milliseconds % 1000:03}"
