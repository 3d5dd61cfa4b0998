"""Videos that reach the server."""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm.exceptions import VLLMValidationError

from vllm_dynin.entrypoints.media_io.guarded import GuardedIO
from vllm_dynin.processors.codecs.limits import MediaError
from vllm_dynin.processors.codecs.video import OpenedVideo, VideoSource, frames_from_base64

FRAME_LIST = "video/jpeg"
"""Media type that vLLM has for a list of pictures, in base64 and with commas between them."""


class GuardedVideoIO(GuardedIO[OpenedVideo]):
    """Takes frames with `load_frames`, in a process of its own.

    Args:
        num_frames: how many. None: as many as the checkpoint has, when the prompt is put together.
        resolution: pixels a side of the frames. Where it is None nothing is decoded here.
        decoded_budget: see `GuardedIO`.
        options: there are no others.

    Raises:
        VLLMValidationError: an unknown option, or one that is no positive integer.
    """

    medium = "video"
    options = ("num_frames", "resolution")

    def __init__(
        self,
        num_frames: int | None = None,
        resolution: int | None = None,
        *,
        decoded_budget: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(decoded_budget=decoded_budget, **options)
        self.num_frames = _positive("num_frames", num_frames)
        self.resolution = _positive("resolution", resolution)

    def decode(self, data: bytes) -> OpenedVideo:
        """The frames that were asked for, and the file.

        Raises:
            MediaError: see `load_frames`.
        """
        return self._opened(data)

    def load_base64(self, media_type: str, data: str) -> OpenedVideo:
        """Decode a file, or a list of pictures; see `load_bytes`."""
        if media_type.lower() != FRAME_LIST:
            return super().load_base64(media_type, data)
        try:
            return self._opened(frames_from_base64(data))
        except MediaError as error:
            raise VLLMValidationError(str(error)) from error

    def _opened(self, source: VideoSource) -> OpenedVideo:
        video = OpenedVideo(source, self.num_frames)
        if self.num_frames is None or self.resolution is None:
            return video
        self.charge(3 * self.num_frames * self.resolution**2)
        frames = video.take(self.num_frames, self.resolution)
        return OpenedVideo(source, self.num_frames, np.stack([np.asarray(f) for f in frames]))


def _positive(name: str, value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise VLLMValidationError(
        f"media_io_kwargs of video: {name}={value!r} must be an integer of 1 or more",
        parameter="media_io_kwargs",
    )
