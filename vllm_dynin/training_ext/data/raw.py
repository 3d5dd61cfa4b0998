"""One training pair before its media are codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.data.bad import BadKind, BadSample
from vllm_dynin.training_ext.data.rows import Medium

Turn = Mapping[str, str]
"""`{"role": "user", "assistant" or "system", "content": text}`."""
Video = Path | bytes | tuple[Medium, ...]
"""A file or a folder of frames, the bytes of a file, or the frames one by one."""


@dataclass(frozen=True, kw_only=True)
class RawRecord:
    """What an adapter makes of a row: `records.Record` with files where that has codes.

    What a direction needs is checked by `Record`.

    Args:
        task: the direction.
        key: of the row, and which of its pairs this is.
        text: question, prompt, edit instruction, or the words to be spoken.
        answer: text of the answer; None where the answer is a medium.
        turns: the messages before `text`.
        thinking: as for `Record`.
        images: source images.
        video: a file or a folder of frames, or the frames as images; None where there is none.
        target_image: of the image directions.
        speech: a recording: what is heard, or what is to be said.
        span: start and end of the recording that is meant, in seconds; None is all of it.
        reply_speech: the spoken answer to speech.

    Raises:
        BadSample: the answer is empty.
    """

    task: Task
    key: str
    text: str = ""
    answer: str | None = None
    turns: tuple[Turn, ...] = ()
    thinking: bool | None = None
    images: tuple[Medium, ...] = ()
    video: Video | None = None
    target_image: Medium | None = None
    speech: Medium | None = None
    span: tuple[float, float] | None = None
    reply_speech: Medium | None = None

    def __post_init__(self) -> None:
        if self.answer is not None and not self.answer.strip():
            raise BadSample(BadKind.FIELDS, "the answer is empty")
