"""Where codecs run for a client of the engine: on the worker, or beside the engine.

On a GPU machine they belong where the model is, in calls so short that no denoising step waits
long; on a CPU machine they run in threads of the caller's process, and no step waits at all.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.speech import SpeechCodec
from vllm_dynin.processors.codecs.styles import DEFAULT_STYLE, parse_style
from vllm_dynin.processors.media import AUDIO_RATE, CodecFolders, MediaCodecs, required_folder
from vllm_dynin.tokens import Vocabulary

Place = Literal["worker", "local"]
Call = Callable[[str, tuple[Any, ...], int | None], Sequence[Any]]
"""`call(method, arguments, turn)`: run a method on all workers of one engine, the same one for the
same turn, or of every engine (data parallel) where the turn is None; the answer of each engine that
was asked, which is the one of its rank 0."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Sound:
    """A piece of sound.

    Args:
        waveform: float32 [N] in [-1, 1]; empty where nothing was said.
        sample_rate: Hz.
    """

    waveform: NDArray[np.float32]
    sample_rate: int

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.waveform) / self.sample_rate

    def to_bytes(self, audio_format: str = "wav") -> bytes:
        """The sound as a file; formats as in `codecs.audio_io.encode_audio`.

        Raises:
            ValueError: unknown format, or nothing was said.
        """
        from vllm_dynin.processors.codecs.audio_io import encode_audio

        return encode_audio(self.waveform, self.sample_rate, audio_format)


class CodecRunner:
    """Encodes and decodes media for a client of the engine.

    Args:
        folders: where the checkpoint's codecs are.
        vocabulary: ids of the checkpoint.
        place: `worker` sends the work to the engine's worker, one call after another; `local`
            loads the codecs into this process and runs them in threads.
        call: how to reach the workers; needed for `worker`.
        num_threads: threads of `local`.
    """

    def __init__(
        self,
        folders: CodecFolders,
        vocabulary: Vocabulary,
        *,
        place: Place = "local",
        call: Call | None = None,
        num_threads: int = 2,
    ) -> None:
        if place == "worker" and call is None:
            raise ValueError("place='worker' needs `call`, the way to the workers; or use 'local'")
        self.place = place
        self._call = call
        self._turns = itertools.count()
        self._folders = folders
        self._codecs = MediaCodecs(folders, torch.device("cpu"), vocabulary)
        self._threads = ThreadPoolExecutor(num_threads, "dynin-codec") if place == "local" else None

    @property
    def _image(self) -> ImageCodec:
        """The image codec of `local`; see `_loaded`."""
        required_folder(self._folders.image, "image")
        return _loaded("image", lambda: self._codecs.image)

    @property
    def _speech(self) -> SpeechCodec:
        """The speech codec of `local`; see `_loaded`."""
        required_folder(self._folders.speech, "speech")
        return _loaded("speech", lambda: self._codecs.speech)

    def encode_image(self, image: Image.Image) -> list[int]:
        """Codes of an RGB image whose sides are multiples of the patch; raster order, no offset."""
        if self.place == "local":
            codes: list[int] = self._image.encode([image])[0].tolist()
            return codes
        return list(
            self._ask("dynin_encode_image", image.tobytes(), image.height, image.width) or ()
        )

    def encode_speech(self, waveform: NDArray[np.float32]) -> list[int]:
        """Units of mono samples at `AUDIO_RATE`, repeats kept, so that place is time."""
        if self.place == "local":
            return self._speech.encode(waveform, AUDIO_RATE, collapse_repeats=False)
        samples = np.ascontiguousarray(waveform, np.float32).tobytes()
        return list(self._ask("dynin_encode_speech", samples) or ())

    def decode_image(self, codes: Sequence[int], height: int, width: int) -> Future[Image.Image]:
        """The image of these codes, RGB."""
        return self._submit(lambda: self._decoded_image(list(codes), height, width))

    def decode_speech(
        self,
        units: Sequence[int],
        *,
        style: str | None = None,
        seed: int | None = None,
        speed: float = 1.0,
    ) -> Future[Sound]:
        """The sound of these units; without units, silence of no length.

        Args:
            units: without offset.
            style: as in `codecs.styles.parse_style`; None for the default.
            seed: of the voice; None draws one.
            speed: as in `SpeechCodec.decode`.
        """
        return self._submit(lambda: self._decoded_speech(list(units), style, seed, speed))

    def speech_rate(self) -> int:
        """Samples per second of decoded speech."""
        if self.place == "local":
            return self._speech.output_rate
        return int(self._ask("dynin_speech_rate"))

    def speech_pieces(
        self,
        units: Sequence[int],
        *,
        style: str | None = None,
        seed: int | None = None,
        speed: float = 1.0,
    ) -> Iterator[NDArray[np.float32]]:
        """`decode_speech` in pieces of about a second, each made in the caller's thread when asked.

        Joined they are the waveform that `decode_speech` gives. Arguments as there.
        """
        if not units:
            return
        if self.place == "local":
            chosen = style or DEFAULT_STYLE
            yield from self._speech.decode_stream(units, chosen, seed, speed)
            return
        name, turn = uuid.uuid4().hex, next(self._turns)
        self._ask("dynin_open_speech", name, list(units), style, seed, speed, turn=turn)
        while piece := self._ask("dynin_next_speech", name, turn=turn):
            yield np.frombuffer(piece, np.float32)

    def speech_styles(self) -> list[str]:
        """Names of the styles the speech codec has."""
        if self.place == "local":
            return self._speech.styles
        return list(self._ask("dynin_speech_styles"))

    def check_style(self, name: str) -> None:
        """Check that the speech codec has a style.

        Raises:
            ValueError: no such style, or not in this codec, or there is no speech codec.
        """
        styles = self.speech_styles()
        if parse_style(name).name not in styles:
            raise ValueError(
                f"style {name!r} is not one of the {len(styles)} of this speech codec: "
                f"{', '.join(sorted(styles)[:3])}, …"
            )

    def take_trajectory(self, name: str) -> list[int]:
        """Steps of a trajectory's slots; the worker forgets it.

        Raises:
            ValueError: it is not kept any more, or there is no way to the workers.
        """
        if self._call is None:
            raise ValueError(
                "trajectories are kept by the package's worker extension; start the engine without "
                "a worker_extension_cls of your own, or derive it from MediaWorkerExtension"
            )
        steps = self._find("dynin_take_trajectory", name)
        if steps is None:
            raise ValueError(
                f"the worker does not keep trajectory {name!r}: it was fetched before, or more "
                "recent ones took its place; fetch each once, soon after its request has ended"
            )
        return list(steps)

    def peek_trajectory(self, client_id: str) -> tuple[list[int], list[int]] | None:
        """Steps and ids of the slots of a request that runs with `trajectory`, as they stand now.

        Args:
            client_id: the id the request was sent with.

        Returns:
            None where nobody knows (yet), or there is no way to the workers.
        """
        if self._call is None:
            return None
        found = self._find("dynin_peek_trajectory", client_id)
        return None if found is None else (list(found[0]), list(found[1]))

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        if self._threads is not None:
            return self._threads.submit(work)
        done: Future[T] = Future()
        try:
            done.set_result(work())
        except Exception as error:  # handed on to whoever asks for the result
            done.set_exception(error)
        return done

    def _decoded_image(self, codes: list[int], height: int, width: int) -> Image.Image:
        if self.place == "local":
            return self._image.decode(torch.tensor([codes]), height, width)[0]
        return Image.frombytes(
            "RGB", (width, height), self._ask("dynin_decode_image", codes, height, width)
        )

    def _decoded_speech(
        self, units: list[int], style: str | None, seed: int | None, speed: float
    ) -> Sound:
        pieces = self.speech_pieces(units, style=style, seed=seed, speed=speed)
        return Sound(np.concatenate([np.zeros(0, np.float32), *pieces]), self.speech_rate())

    def _ask(self, method: str, *arguments: Any, turn: int | None = None) -> Any:
        """Run a method on the workers of one engine; by turns, unless the turn is given."""
        assert self._call is not None
        turn = next(self._turns) if turn is None else turn
        return self._call(method, arguments, turn)[0]

    def _find(self, method: str, *arguments: Any) -> Any:
        """Run a method on the workers of every engine; the answer of the one that has one."""
        assert self._call is not None
        answers = self._call(method, arguments, None)
        return next((answer for answer in answers if answer is not None), None)


def _loaded(medium: str, load: Callable[[], T]) -> T:
    """A codec, loaded at first use.

    Raises:
        RuntimeError: its files are not what they were at the start, which no request is to blame
            for.
    """
    try:
        return load()
    except (ValueError, OSError) as error:
        raise RuntimeError(
            f"the {medium} codec cannot be loaded; its files were whole at the start, and are "
            "damaged or gone"
        ) from error
