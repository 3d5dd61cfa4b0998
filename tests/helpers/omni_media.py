"""Real media as requests bring them, and the same requests with the codes written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image
from sklearn.datasets import load_sample_images
from vllm import LLM, RequestOutput, SamplingParams

from helpers.request_mix import Case
from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.processors.assemble import expand_media
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.speech import SpeechCodec
from vllm_dynin.processors.codecs.video import load_frames
from vllm_dynin.processors.media import AUDIO_RATE, IMAGE_CODEC, SPEECH_CODEC

LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
"""Recorded speech, from the Debian package pocketsphinx-testdata."""


def photograph(index: int = 0) -> Image.Image:
    """A real photograph; further indices are other parts of the same two."""
    photo = Image.fromarray(load_sample_images().images[index % 2])
    return photo.crop((7 * index, 5 * index, 300 + 7 * index, 200 + 5 * index))


def clip(num_frames: int = 7) -> np.ndarray:
    """uint8 [F, H, W, 3]: a slow pan over a photograph."""
    photo = Image.fromarray(load_sample_images().images[1])
    views = [photo.crop((20 * i, 0, 200 + 20 * i, 150)) for i in range(num_frames)]
    return np.stack([np.asarray(view) for view in views])


def recording(start: float = 1.0, seconds: float = 0.5) -> tuple[np.ndarray, int]:
    """Recorded speech where there is some, else speech of the small codec; samples and rate."""
    found = sorted(LIBRIVOX.glob("*.wav"))
    if found:
        samples, rate = soundfile.read(found[0], dtype="float32")
    else:
        samples, rate = SpeechCodec.from_pretrained().decode(list(range(1, 60)), seed=1)
    return samples[int(start * rate) : int((start + seconds) * rate)], rate


@dataclass(frozen=True)
class MediaCase:
    """A request with media, and the same request with their codes in the prompt."""

    prompt: dict[str, Any]
    written: Case


class MediaRequests:
    """Turns media into codes as the engine must, with the checkpoint's own codecs.

    Args:
        folder: of the checkpoint.
        config: of the checkpoint.
    """

    def __init__(self, folder: Path, config: DyninOmniConfig) -> None:
        self._folder, self.config, self.vocabulary = folder, config, config.vocabulary

    @cached_property
    def _image(self) -> ImageCodec:
        return ImageCodec.from_pretrained(self._folder / IMAGE_CODEC)

    @cached_property
    def _speech(self) -> SpeechCodec:
        return SpeechCodec.from_pretrained(self._folder / SPEECH_CODEC)

    def image_codes(self, image: Image.Image, side: int) -> list[int]:
        """Codes of one image."""
        return self._image.encode([image], resolution=side)[0].tolist()

    def video_codes(self, frames: np.ndarray, count: int, side: int) -> list[int]:
        """Codes of the frames taken of a video, each encoded on its own."""
        taken = load_frames(frames, count, side)
        return [code for frame in taken for code in self.image_codes(frame, side)]

    def units(self, samples: np.ndarray, rate: int) -> list[int]:
        """Speech units, repeats collapsed."""
        return self._speech.encode(samples, rate)

    def unit_bound(self, samples: np.ndarray, rate: int) -> int:
        """Most units a recording can have."""
        length = len(samples) * AUDIO_RATE // rate
        return -(-length // self._speech.backend.samples_per_unit)

    def case(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        images: Sequence[Image.Image] = (),
        videos: Sequence[np.ndarray] = (),
        audios: Sequence[tuple[np.ndarray, int]] = (),
        side: int | None = None,
        num_frames: int | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> MediaCase:
        """A request whose prompt has a placeholder pair for each medium.

        `side` and `num_frames` are what the engine must come to, `kwargs` what it is told.
        """
        config = self.config
        count = num_frames or config.video_num_frames
        expanded = expand_media(
            prompt_ids,
            self.vocabulary,
            images=[self.image_codes(image, side or config.image_resolution) for image in images],
            videos=[self.video_codes(v, count, side or config.video_resolution) for v in videos],
            speech=[self.units(*audio) for audio in audios],
        )
        kinds = {"image": list(images), "video": list(videos), "audio": list(audios)}
        prompt: dict[str, Any] = {
            "prompt_token_ids": list(prompt_ids),
            "multi_modal_data": {kind: items for kind, items in kinds.items() if items},
        }
        if kwargs is not None:
            prompt["mm_processor_kwargs"] = kwargs
        return MediaCase(prompt, Case(list(expanded), params))


def run_media(llm: LLM, cases: Sequence[MediaCase]) -> list[RequestOutput]:
    """Serve the requests with their media in one call."""
    return llm.generate(
        [case.prompt for case in cases], [case.written.params for case in cases], use_tqdm=False
    )
