"""Media and known parts of requests: opened, sized and, for infilling, encoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vllm_dynin.canvas import Task
from vllm_dynin.config import MMadaConfig
from vllm_dynin.defaults import default_size
from vllm_dynin.planning import image_size
from vllm_dynin.processors import infill
from vllm_dynin.processors.codecs.audio_io import AudioSource, load_audio
from vllm_dynin.processors.codecs.image_io import (
    ImageSource,
    open_image,
    open_mask,
    resize_and_crop,
)
from vllm_dynin.processors.codecs.video import VideoSource, load_frames
from vllm_dynin.processors.media import AUDIO_RATE, codec_patch
from vllm_dynin.requests.base import Checkpoint
from vllm_dynin.sampling.params import DenoiseParams


def listed(images: ImageSource | Sequence[ImageSource]) -> Sequence[ImageSource]:
    """One image or several, as several."""
    return images if isinstance(images, list | tuple) else [images]  # type: ignore[list-item]


def given(**options: int | None) -> dict[str, int]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def opened_image(source: ImageSource, checkpoint: Checkpoint) -> Image.Image:
    """RGB, upright, at its own size: the server brings it to the model's.

    Raises:
        ValueError: the checkpoint has no image codec.
    """
    _ = checkpoint.image_folder
    return open_image(source)


def opened_video(
    source: VideoSource,
    checkpoint: Checkpoint,
    num_frames: int | None = None,
    resolution: int | None = None,
) -> NDArray[np.uint8]:
    """uint8 [F, H, W, 3]: only the frames the model will look at travel to the engine."""
    config, _ = checkpoint.media_config, checkpoint.image_folder
    side = resolution or config.video_resolution
    frames = load_frames(source, num_frames or config.video_num_frames, side)
    return np.stack([np.asarray(frame) for frame in frames])


def opened_audio(source: AudioSource, checkpoint: Checkpoint) -> tuple[NDArray[np.float32], int]:
    """float32 [N] mono samples and their rate.

    Raises:
        ValueError: the checkpoint has no speech codec.
    """
    _ = checkpoint.speech_folder
    return load_audio(source, target_rate=AUDIO_RATE), AUDIO_RATE


OPENERS: dict[str, Callable[[Any, Checkpoint], Any]] = {
    "image": opened_image,
    "video": opened_video,
    "audio": opened_audio,
}


def size_like(image: Image.Image, config: MMadaConfig) -> tuple[int, int]:
    """Height and width in the proportions of an image, with the pixels of a new image."""
    patch, ratio = config.image_patch, math.sqrt(image.height / image.width)
    side = math.sqrt(math.prod(default_size(Task.TEXT_TO_IMAGE, config)))
    height = max(1, round(side * ratio / patch)) * patch
    width = max(1, round(side / ratio / patch)) * patch
    return height, width


def pinned_image(
    options: DenoiseParams,
    image: Image.Image,
    mask: ImageSource,
    task: Task,
    checkpoint: Checkpoint,
) -> DenoiseParams:
    """Options of a request for an image whose codes outside a mask are known.

    Args:
        options: of the request; they give the size of the image.
        image: the known image, RGB.
        mask: what to generate; see `image_io.open_mask`. In the proportions of the image.
        task: the direction.
        checkpoint: its image codec encodes the known part.

    Raises:
        ValueError: the mask does not fit or marks nothing, or there is no image codec.
    """
    config = checkpoint.media_config
    height, width = image_size(options, task, config)
    patch = codec_patch(checkpoint.image_folder)
    fitted = infill.fit_mask(open_mask(mask), image, height, width)
    is_generated = infill.marked_codes(fitted, patch)
    codes = checkpoint.codecs.encode_image(resize_and_crop(image, height, width))
    targets = infill.image_targets(codes, is_generated, config.vocabulary)
    return filled(options, targets)


def filled(options: DenoiseParams, targets: tuple[int, ...]) -> DenoiseParams:
    """Options of an infilling request. EOS in a gap must not cut off the known part behind it.

    Raises:
        ValueError: the options name targets of their own.
    """
    if options.target_token_ids is not None:
        raise ValueError(
            "options.target_token_ids is what this request makes of its known part; leave it out"
        )
    return msgspec.structs.replace(options, target_token_ids=targets, stop_at_eos=False)
