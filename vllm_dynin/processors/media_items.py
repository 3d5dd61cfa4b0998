"""Media as vLLM hands them to the processor: what its parser is told about ours.

A file is bytes or a `pathlib.Path`. Never text: that is what a client of a server could send.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from vllm.multimodal.media.base import MediaWithBytes
from vllm.multimodal.parse import (
    AudioProcessorItems,
    ImageProcessorItems,
    ModalityDataItems,
    MultiModalDataParser,
    ProcessorBatchItems,
)

from vllm_dynin.processors.codecs.audio_io import load_audio
from vllm_dynin.processors.codecs.image_io import open_image
from vllm_dynin.processors.codecs.limits import MediaError
from vllm_dynin.processors.codecs.video import OpenedVideo
from vllm_dynin.processors.media import AUDIO_RATE


class VideoItems(ProcessorBatchItems[OpenedVideo | None]):
    """Videos of one prompt; each is known to vLLM's caches by its file, not by a few frames."""

    def __init__(self, videos: list[OpenedVideo | None]) -> None:
        super().__init__(videos, "video")

    def get_item_for_hash(self, index: int) -> Any:
        """What makes a video another one."""
        video = self.data[index]
        if video is None:
            return None
        source = video.source
        content = source.read_bytes() if isinstance(source, Path) else source
        return [content, video.num_frames]


class MediaParser(MultiModalDataParser):
    """VLLM's parser, with files and our readers' results among what it takes."""

    def _parse_image_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        # VLLM's own converts every mode to RGB with Pillow, which makes 16 bits white.
        if data is None:
            return None
        return ImageProcessorItems(
            [None if one is None else _picture(one) for one in _one_by_one(data)]
        )

    def _parse_video_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        if data is None:
            return None
        return VideoItems([None if video is None else _opened(video) for video in _videos(data)])

    def _parse_audio_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        if data is None:
            return None
        return AudioProcessorItems(
            [None if sound is None else _heard(sound) for sound in _recordings(data)]
        )


def _one_by_one(pictures: Any) -> Sequence[Any]:
    """One picture or several, as several."""
    if isinstance(pictures, list | tuple):
        return pictures
    if isinstance(pictures, np.ndarray | torch.Tensor) and pictures.ndim == 4:
        return list(pictures)
    return [pictures]


def _picture(picture: Any) -> Any:
    """A picture of `multi_modal_data`, opened: RGB, and so known to vLLM's caches by its pixels.

    Raises:
        MediaError: something else, or it cannot be used.
    """
    if isinstance(picture, MediaWithBytes):  # of our reader, which has opened it
        return picture
    if isinstance(picture, torch.Tensor):
        picture = picture.detach().cpu().numpy()
    if not isinstance(picture, Image.Image | bytes | bytearray | memoryview | Path | np.ndarray):
        raise MediaError(
            f"a picture of multi_modal_data is a {type(picture).__name__}; give a PIL image, a "
            "file's bytes, a pathlib.Path or uint8 pixels [H, W, 3]"
        )
    return open_image(picture)


def _videos(data: Any) -> Sequence[Any]:
    """One video or several, as several. A list of pictures is one."""
    if isinstance(data, list) and not _are_frames(data):
        return data
    if isinstance(data, np.ndarray | torch.Tensor) and data.ndim > 4:
        return list(data)
    return [data]


def _are_frames(items: list[Any]) -> bool:
    return bool(items) and all(
        isinstance(item, Image.Image)
        or (isinstance(item, np.ndarray | torch.Tensor) and item.ndim == 3)
        for item in items
    )


def _opened(video: Any) -> OpenedVideo:
    """A video of `multi_modal_data`: a file, frames, or frames with vLLM's metadata.

    Raises:
        MediaError: something else.
    """
    if isinstance(video, OpenedVideo):
        return video
    if isinstance(video, MediaWithBytes):
        video = video.media
    if isinstance(video, tuple) and len(video) == 2:  # with vLLM's metadata
        video = video[0]
    if isinstance(video, bytearray | memoryview):
        video = bytes(video)
    if isinstance(video, torch.Tensor):
        video = video.detach().cpu().numpy()
    if not isinstance(video, bytes | Path | np.ndarray | list):
        raise MediaError(
            f"a video of multi_modal_data is a {type(video).__name__}; give a file's bytes, a "
            "pathlib.Path, uint8 frames [T, H, W, 3], or a list of pictures"
        )
    return OpenedVideo(video)


def _recordings(data: Any) -> Sequence[Any]:
    """One recording or several, as several; as in vLLM, a two-dimensional array is several."""
    if isinstance(data, np.ndarray | torch.Tensor):
        return [data] if data.ndim < 2 else list(data)
    if isinstance(data, list) and not (data and isinstance(data[0], int | float)):
        return data
    return [data]


def _heard(sound: Any) -> NDArray[np.float32]:
    """A recording of `multi_modal_data`: a file, samples at `AUDIO_RATE`, or samples and a rate.

    Raises:
        MediaError: something else, or it cannot be used.
    """
    rate = None
    if isinstance(sound, tuple) and len(sound) == 2:
        sound, rate = sound
    if isinstance(sound, bytes | bytearray | memoryview | Path):
        return load_audio(sound, rate, target_rate=AUDIO_RATE)
    if isinstance(sound, np.ndarray | torch.Tensor | list):
        rate = AUDIO_RATE if rate is None else rate
        return load_audio(sound, rate, target_rate=AUDIO_RATE)
    raise MediaError(
        f"a recording of multi_modal_data is a {type(sound).__name__}; give a file's bytes, a "
        f"pathlib.Path, samples at {AUDIO_RATE} Hz, or (samples, rate)"
    )
