"""What can be asked of a worker between two engine steps: to run a codec, or for a trajectory.

vLLM mixes this class into its worker; `collective_rpc` calls a method by name on every rank, and
no denoising step runs meanwhile. So each call does a bounded piece of work: one image, one chunk
of a recording, about a second of speech. Rank 0 works and answers, the others return None.
Arguments and results are bytes, numbers and lists of them, which is what vLLM sends between
processes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from vllm_dynin.processors.codecs.clock import CODEC_CLOCK
from vllm_dynin.processors.codecs.styles import DEFAULT_STYLE
from vllm_dynin.processors.media import AUDIO_RATE, MediaCodecs

MAX_OPEN_STREAMS = 256
"""Speech streams that were opened and not read to their end; the oldest goes first."""


class MediaWorkerExtension:
    """Methods added to vLLM's worker. Their names open with `dynin_`, to stay clear of its own."""

    rank: int
    model_runner: Any

    def dynin_encode_image(self, pixels: bytes, height: int, width: int) -> list[int] | None:
        """Codes of one RGB image of height × width × 3 bytes, raster order, no offset."""
        if self.rank != 0:
            return None
        array = np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
        codecs = self._dynin_codecs()
        with CODEC_CLOCK.timed("image", codecs.device):
            codes = codecs.image.encode([Image.fromarray(array)])
        return cast(list[int], codes[0].tolist())

    def dynin_decode_image(self, codes: list[int], height: int, width: int) -> bytes | None:
        """One RGB image of height × width × 3 bytes from its codes."""
        if self.rank != 0:
            return None
        image = self._dynin_codecs().image.decode(torch.tensor([codes]), height, width)[0]
        return image.tobytes()

    def dynin_encode_speech(self, samples: bytes) -> list[int] | None:
        """Units of float32 mono samples at `AUDIO_RATE`, repeats kept."""
        if self.rank != 0:
            return None
        waveform = np.frombuffer(samples, np.float32).copy()  # torch wants it writable
        codecs = self._dynin_codecs()
        with CODEC_CLOCK.timed("speech", codecs.device):
            return codecs.speech.encode(waveform, AUDIO_RATE, collapse_repeats=False)

    def dynin_speech_rate(self) -> int | None:
        """Samples per second of decoded speech."""
        return self._dynin_codecs().speech.output_rate if self.rank == 0 else None

    def dynin_speech_styles(self) -> list[str] | None:
        """Names of the styles the speech codec has."""
        return self._dynin_codecs().speech.styles if self.rank == 0 else None

    def dynin_open_speech(
        self, name: str, units: list[int], style: str | None, seed: int | None, speed: float = 1.0
    ) -> None:
        """Start to speak units; `dynin_next_speech` gives the sound under the same name."""
        if self.rank == 0:
            speech = self._dynin_codecs().speech
            stream = speech.decode_stream(units, style or DEFAULT_STYLE, seed, speed)
            streams = self._dynin_streams()
            streams[name] = stream
            if len(streams) > MAX_OPEN_STREAMS:
                streams.popitem(last=False)

    def dynin_next_speech(self, name: str) -> bytes | None:
        """The next float32 samples, about a second; empty at the end, which closes the stream."""
        if self.rank != 0:
            return None
        stream = self._dynin_streams().get(name)
        piece = None if stream is None else next(stream, None)
        if piece is None:
            self._dynin_streams().pop(name, None)
            return b""
        return np.asarray(piece, np.float32).tobytes()

    def dynin_take_encoding_times(self) -> dict[str, tuple[int, float]]:
        """Media encoded by this rank since the last call, and seconds that took, by codec."""
        return CODEC_CLOCK.take()

    def dynin_take_trajectory(self, name: str) -> list[int] | None:
        """At which step each slot of a request was decided; None where it is not kept (any more).

        Args:
            name: of the trajectory, from the request's report.
        """
        if self.rank != 0:
            return None
        return self.model_runner.model_state.trajectories.take(name)

    def dynin_peek_trajectory(self, client_id: str) -> tuple[list[int], list[int]] | None:
        """Steps and ids of a request's slots as they stand now; None where it is not kept (yet).

        Args:
            client_id: as the client named the request, which is not the engine's name for it.
        """
        if self.rank != 0:
            return None
        return cast(
            "tuple[list[int], list[int]] | None",
            self.model_runner.model_state.trajectories.peek(client_id),
        )

    def _dynin_codecs(self) -> MediaCodecs:
        codecs = getattr(self.model_runner.model, "media", None)
        if codecs is None:
            raise ValueError("a text-only model has no codecs; use a checkpoint with media")
        return cast(MediaCodecs, codecs)

    def _dynin_streams(self) -> OrderedDict[str, Iterator[Any]]:
        # On the model and not here: the worker's own __init__ never calls one of ours.
        runner = self.model_runner
        if not hasattr(runner, "dynin_streams"):
            runner.dynin_streams = OrderedDict()
        return cast("OrderedDict[str, Iterator[Any]]", runner.dynin_streams)
