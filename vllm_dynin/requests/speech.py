"""Requests that are answered in speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_dynin.processors import chat, infill
from vllm_dynin.processors.codecs.audio_io import AudioSource
from vllm_dynin.processors.codecs.image_io import ImageSource
from vllm_dynin.processors.codecs.video import VideoSource
from vllm_dynin.processors.media import speech_input
from vllm_dynin.processors.placeholders import STAND_IN, empty_media
from vllm_dynin.requests.base import Checkpoint, Prompt, Request
from vllm_dynin.requests.media import (
    filled,
    given,
    opened_audio,
    opened_image,
    opened_video,
)
from vllm_dynin.requests.wording import refuse_unspeakable


@dataclass(frozen=True)
class TextToSpeech(Request):
    """A sentence, read aloud.

    Args:
        sentence: what to say; it has a letter or a digit. How it sounds is `DenoiseParams.style`.
        instruction: None is the first of those the model was trained with.
    """

    sentence: str
    instruction: str | None = None

    def prompt(self, checkpoint: Checkpoint) -> Prompt:
        """The sentence in its block."""
        refuse_unspeakable(self.sentence)
        head = checkpoint.assembler.text_to_speech(self.sentence, self.instruction)
        return Prompt(token_ids=head, options=self.options)


@dataclass(frozen=True)
class FillSpeech(Request):
    """A recording of which a span is spoken anew.

    Args:
        recording: the known recording, a file or `(samples, sample_rate)`.
        sentence: all that is said in it, as it is to be.
        start: of the span, in seconds.
        stop: of the span, in seconds.
        num_units: speech units the span gets; None is as many as it had.
    """

    recording: AudioSource
    sentence: str
    start: float
    stop: float
    num_units: int | None = None

    def prompt(self, checkpoint: Checkpoint) -> Prompt:
        """The sentence, with the units outside the span pinned."""
        refuse_unspeakable(self.sentence)
        samples, rate = opened_audio(self.recording, checkpoint)
        takes = speech_input(checkpoint.speech_folder)
        targets = infill.speech_targets(
            checkpoint.codecs.encode_speech(samples),
            self.start,
            self.stop,
            units_per_second=rate / takes.samples_per_unit,
            num_units=self.num_units,
            vocabulary=checkpoint.config.vocabulary,
        )
        head = checkpoint.assembler.text_to_speech(self.sentence)
        return Prompt(token_ids=head, options=filled(self.options, targets))


@dataclass(frozen=True)
class SpeechToSpeech(Request):
    """A spoken question that is answered in speech.

    Args:
        recording: a file, or `(samples, sample_rate)`.
        images: what the question is about, if anything.
    """

    recording: AudioSource
    images: Sequence[ImageSource] = ()

    def prompt(self, checkpoint: Checkpoint) -> Prompt:
        """Images, recording, and the turn of the assistant."""
        images = [opened_image(image, checkpoint) for image in self.images]
        media: dict[str, list[Any]] = {"audio": [opened_audio(self.recording, checkpoint)]}
        head = checkpoint.assembler.speech_to_speech(STAND_IN, [STAND_IN] * len(images))
        if images:
            media["image"] = images
        return Prompt(
            token_ids=empty_media(head, checkpoint.config.vocabulary),
            options=self.options,
            media=media,
        )


@dataclass(frozen=True)
class VideoToSpeech(Request):
    """A written question about a video that is answered in speech.

    Args:
        video: a file, or the frames.
        question: about it.
        num_frames: as for `VideoToText`.
        resolution: as for `VideoToText`.
    """

    video: VideoSource
    question: str = chat.DEFAULT_QUESTION
    num_frames: int | None = field(default=None, kw_only=True)
    resolution: int | None = field(default=None, kw_only=True)

    def prompt(self, checkpoint: Checkpoint) -> Prompt:
        """The video, then the question in its block."""
        head = checkpoint.assembler.video_to_speech(self.question, [STAND_IN])
        frames = opened_video(self.video, checkpoint, self.num_frames, self.resolution)
        return Prompt(
            token_ids=empty_media(head, checkpoint.config.vocabulary, is_video=True),
            options=self.options,
            media={"video": [frames]},
            media_options=given(resolution=self.resolution, num_frames=self.num_frames),
        )
