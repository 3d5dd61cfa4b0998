"""Recordings that reach the server."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vllm_dynin.entrypoints.media_io.guarded import GuardedIO
from vllm_dynin.processors.codecs.audio_io import load_audio
from vllm_dynin.processors.media import AUDIO_RATE


class GuardedAudioIO(GuardedIO[tuple[NDArray[np.float32], float]]):
    """Reads recordings with `load_audio`: one channel at the rate that the speech codec wants."""

    medium = "audio"

    def decode(self, data: bytes) -> tuple[NDArray[np.float32], float]:
        """Samples, and `AUDIO_RATE`.

        Raises:
            MediaError: see `load_audio`.
        """
        samples = load_audio(data, target_rate=AUDIO_RATE)
        self.charge(samples.nbytes)
        return samples, AUDIO_RATE
