"""What judging an answer takes beside the answer: codecs and judges, made once and kept."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from PIL import Image

from vllm_dynin.codec_runner import CodecRunner
from vllm_dynin.config import MMadaConfig
from vllm_dynin.processors.codecs.audio_blocks import Samples
from vllm_dynin.processors.codecs.image_io import resize_and_crop
from vllm_dynin.processors.codecs.speech import collapse
from vllm_dynin.processors.codecs.video import load_frames
from vllm_dynin.requests import Checkpoint
from vllm_dynin.training_ext.evaluate.hearing import Listener, Sphinx, Whisper, hear_all
from vllm_dynin.training_ext.evaluate.seeing import Judge
from vllm_dynin.training_ext.evaluate.words import SPOKEN_NUMBERS
from vllm_dynin.training_ext.tiny import digits, words

_NUM_CLIPS = 400  # the clip judges learn from; their ceilings move by a hundredth beyond that


class Bench:
    """Codecs of a checkpoint, and judges that were trained through them.

    It outlives the engine, so one serves for several checkpoints with the same codecs.

    Args:
        checkpoint: whose codecs are used; they are loaded into this process.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self._codecs = CodecRunner(checkpoint.folders, checkpoint.config.vocabulary)
        self._heard: dict[tuple[str, tuple[int, ...]], str] = {}

    def codes(self, image: Image.Image, side: int) -> list[int]:
        """Codes of an image at `side` pixels a side."""
        return self._codecs.encode_image(resize_and_crop(image, side, side))

    def redrawn(self, image: Image.Image, side: int) -> Image.Image:
        """What the codec leaves of an image at `side` pixels a side."""
        return self._codecs.decode_image(self.codes(image, side), side, side).result()

    def heard_again(self, listener: Listener, waveform: Samples) -> str:
        """What a judge hears of a real recording after the codec.

        Args:
            listener: the judge.
            waveform: float32 [N] at the codec's input rate; equal ones are heard once.
        """
        units = collapse(self._codecs.encode_speech(waveform))
        key = (listener.name, tuple(units))
        if key not in self._heard:
            again = self._codecs.decode_speech(units, seed=0).result()
            (self._heard[key],) = hear_all(listener, [(again.waveform, again.sample_rate)])
        return self._heard[key]

    def seen(self, pictures: Sequence[Image.Image], side: int) -> list[Image.Image]:
        """A row of pictures as the codec leaves them."""
        return [self.redrawn(picture, side) for picture in pictures]

    def seen_clip(self, frames: Sequence[Image.Image]) -> list[Image.Image]:
        """The frames of a clip that the model looks at, as the codec leaves them."""
        count, side = self.media_config.video_num_frames, self.media_config.video_resolution
        chosen = load_frames(np.stack([np.asarray(frame) for frame in frames]), count, side)
        return self.seen(chosen, side)

    @property
    def media_config(self) -> MMadaConfig:
        """The configuration of a model with media."""
        assert isinstance(self.config, MMadaConfig)  # directions were checked against it
        return self.config

    @cached_property
    def digit_judge(self) -> Judge:
        """Which digit is in a picture; it learnt from the training digits."""
        side = self.media_config.generation_resolution
        known = range(digits.num_train())
        return Judge(
            [self.seen([digits.image(index)], side) for index in known],
            [words.DIGIT_WORDS[digits.label(index)] for index in known],
        )

    @cached_property
    def clip_judges(self) -> tuple[Judge, Judge]:
        """Which digit moves in a clip, and where to; they learnt from training digits."""
        rng = random.Random("clips of the judge")
        clips, named, moving = [], [], []
        for index in range(min(_NUM_CLIPS, digits.num_train())):
            direction = rng.choice(list(digits.DIRECTIONS))
            frames = digits.clip(digits.image(index, digits.CLIP_SIDE), direction)
            clips.append(self.seen_clip(frames))
            named.append(words.DIGIT_WORDS[digits.label(index)])
            moving.append(direction)
        return Judge(clips, named), Judge(clips, moving)

    @cached_property
    def real_digits(self) -> float:
        """Accuracy of the digit judge on digits that neither it nor the model learnt from."""
        side, known = self.media_config.generation_resolution, digits.test_indices()
        return self.digit_judge.accuracy(
            [self.seen([digits.image(index)], side) for index in known],
            [words.DIGIT_WORDS[digits.label(index)] for index in known],
        )

    @cached_property
    def listeners(self) -> tuple[Listener, Listener]:
        """The judge that counts, and a second opinion.

        Raises:
            ValueError: one is not installed.
        """
        return Whisper(), Sphinx(SPOKEN_NUMBERS)
