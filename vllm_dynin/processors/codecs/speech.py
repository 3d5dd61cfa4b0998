"""Speech ↔ units: the codec that the rest of the package uses.

    codec = SpeechCodec.from_pretrained("snu-aidas/emova_speech_tokenizer_hf")
    units = codec.encode(waveform, sample_rate)
    waveform, sample_rate = codec.decode(units, style="gender-male_emotion-happy", seed=1)

Two tokenizers stand behind it, told apart by `model_type` in config.json: the published one and the
small one that ships with the package.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vllm_dynin.processors.codecs.audio_blocks import Samples
from vllm_dynin.processors.codecs.audio_io import AudioSource, load_audio
from vllm_dynin.processors.codecs.emova_speech import (
    EMOVA_MODEL_TYPE,
    EmovaSpeech,
    encoder_config,
    style_table,
)
from vllm_dynin.processors.codecs.limits import DEFAULT_LIMITS, MediaError, MediaLimits
from vllm_dynin.processors.codecs.loading import (
    load_exact,
    read_config,
    read_safetensors,
    resolve_checkpoint,
)
from vllm_dynin.processors.codecs.styles import DEFAULT_STYLE, Style, StyleTable, parse_style
from vllm_dynin.processors.codecs.toy_speech import (
    TOY_MODEL_TYPE,
    ToySpeech,
    toy_config,
    toy_styles,
)

TOY_SPEECH_DIRECTORY = Path(__file__).parent / "data" / "toy_speech"
"""The checkpoint of the small codec that ships with the package."""
MIN_SPEED, MAX_SPEED = 0.25, 4.0
MAX_UNITS = 4096
"""Units decoded at once: the unit encoder's attention is quadratic in them (128 MiB at this)."""


class SpeechBackend(Protocol):
    """What a speech tokenizer offers to `SpeechCodec`, which does all checking."""

    num_units: int
    """Size of the codebook."""
    input_rate: int
    """Hz that `raw_units` expects."""
    output_rate: int
    """Hz that `stream` yields."""
    samples_per_unit: int
    """Input samples per raw unit: N samples give ceil(N / this) units."""
    min_samples: int
    """Fewest input samples."""
    max_chunk_seconds: int
    """Longest input encoded as one."""
    styles: StyleTable

    def raw_units(self, waveform: Tensor) -> Tensor:
        """float32 [N] at `input_rate` → int64 [ceil(N / samples_per_unit)], repeats kept."""
        ...

    def stream(
        self,
        units: Tensor,
        style: Style,
        *,
        speed: float,
        generator: torch.Generator,
        max_samples: int,
    ) -> Iterator[Tensor]:
        """int64 [U] → pieces of float32 samples; ValueError for more than `max_samples`."""
        ...


@dataclass(frozen=True, kw_only=True)
class SpeechInput:
    """What a speech codec takes, known without its weights.

    Args:
        rate: samples per second.
        samples_per_unit: N samples give at most ceil(N / this) units.
        min_samples: fewest samples.
        styles: what its decoder can sound like.
    """

    rate: int
    samples_per_unit: int
    min_samples: int
    styles: StyleTable

    @classmethod
    def of(cls, directory: Path) -> SpeechInput:
        """Read it from the config.json of a codec's directory.

        Raises:
            ValueError: the directory holds no speech codec.
        """
        config = read_config(directory)
        model_type = config.pop("model_type", None)
        if model_type == EMOVA_MODEL_TYPE:
            encoder = encoder_config(config.get("speech_to_units", {}))
            features, samples_per_unit = encoder.features, encoder.samples_per_unit
            styles = style_table(config)
        elif model_type == TOY_MODEL_TYPE:
            toy = toy_config(config)
            features, samples_per_unit = toy.features, ToySpeech.samples_per_unit
            styles = toy_styles()
        else:
            raise _unknown_kind(directory, model_type)
        return cls(
            rate=features.sample_rate,
            samples_per_unit=samples_per_unit,
            min_samples=features.min_samples,
            styles=styles,
        )


def _unknown_kind(directory: Path, model_type: object) -> ValueError:
    return ValueError(
        f"{directory} has model_type={model_type!r}; a speech tokenizer has "
        f"{EMOVA_MODEL_TYPE!r} or {TOY_MODEL_TYPE!r}"
    )


class SpeechCodec:
    """Encodes speech to units and speaks units.

    Args:
        backend: the tokenizer.
        limits: what outside audio may cost; `max_seconds` bounds what is made as well.
    """

    def __init__(self, backend: SpeechBackend, limits: MediaLimits = DEFAULT_LIMITS) -> None:
        self.backend = backend
        self.limits = limits

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path = TOY_SPEECH_DIRECTORY,
        *,
        device: str | torch.device = "cpu",
        limits: MediaLimits = DEFAULT_LIMITS,
        revision: str | None = None,
    ) -> SpeechCodec:
        """Load a speech tokenizer; by default the small one that ships with the package.

        Args:
            path_or_id: directory or Hugging Face repository with config.json and safetensors.
            device: where the networks run (the small codec always runs on the CPU).
            limits: what outside audio may cost.
            revision: branch, tag or commit of a repository.

        Raises:
            ValueError: not found, of another kind, or a key of the weights is not accounted for.
        """
        directory = resolve_checkpoint(path_or_id, revision)
        config, tensors = read_config(directory), read_safetensors(directory)
        model_type = config.pop("model_type", None)
        if model_type == EMOVA_MODEL_TYPE:
            return cls(EmovaSpeech.from_tensors(config, tensors).to(device), limits)
        if model_type == TOY_MODEL_TYPE:
            toy = ToySpeech.from_config(config)
            load_exact(toy, tensors)
            return cls(toy, limits)
        raise _unknown_kind(directory, model_type)

    @property
    def num_units(self) -> int:
        """Size of the codebook; units are 0 .. num_units - 1."""
        return self.backend.num_units

    @property
    def input_rate(self) -> int:
        """Hz at which the encoder listens; other rates are resampled."""
        return self.backend.input_rate

    @property
    def output_rate(self) -> int:
        """Hz of decoded speech."""
        return self.backend.output_rate

    @property
    def styles(self) -> list[str]:
        """Names of the styles this checkpoint speaks in."""
        return self.backend.styles.names

    def encode(
        self,
        waveform: AudioSource,
        sample_rate: int | None = None,
        collapse_repeats: bool = True,
    ) -> list[int]:
        """Units of speech.

        Args:
            waveform: samples `[N]` or with channels, or a path, bytes or file of any audio format.
            sample_rate: Hz of samples; None for a file.
            collapse_repeats: keep one of each run of equal units, as the model was trained on;
                False keeps the timing.

        Returns:
            Units, each in 0 .. num_units - 1. Speech longer than `max_chunk_seconds` is encoded in
            equal chunks on unit borders: without collapsing there are exactly
            ceil(N / samples_per_unit) units, and collapsing goes across the joins. Loudness and
            spectrum are then normalised per chunk, as they are per utterance otherwise.

        Raises:
            MediaError: not audio, too short, NaN, or over a limit.
            ValueError: samples without a rate, or a rate beside a file.
        """
        rate = self.backend.input_rate
        samples = load_audio(waveform, sample_rate, target_rate=rate, limits=self.limits)
        if len(samples) < self.backend.min_samples:
            raise MediaError(
                f"the audio is {1000 * len(samples) / rate:.1f} ms long; at least "
                f"{1000 * self.backend.min_samples / rate:.1f} ms are needed"
            )
        chunks = self.split(torch.from_numpy(samples))
        units = torch.cat([self.backend.raw_units(chunk) for chunk in chunks]).tolist()
        return collapse(units) if collapse_repeats else units

    def split(self, samples_N: Tensor) -> list[Tensor]:
        """Cut [N] samples into the fewest chunks of at most `max_chunk_seconds`.

        All but the last have the same length, a multiple of `samples_per_unit`, so that the chunks'
        units are together as many as those of the whole.
        """
        longest = self.backend.max_chunk_seconds * self.backend.input_rate
        if len(samples_N) <= longest:
            return [samples_N]
        num_chunks = math.ceil(len(samples_N) / longest)
        units = math.ceil(len(samples_N) / (num_chunks * self.backend.samples_per_unit))
        return list(samples_N.split(units * self.backend.samples_per_unit))

    def decode(
        self,
        units: Iterable[int],
        style: str | Style = DEFAULT_STYLE,
        seed: int | None = None,
        speed: float = 1.0,
    ) -> tuple[Samples, int]:
        """Speak units.

        Args:
            units: each in 0 .. num_units - 1; at least one, at most `MAX_UNITS`.
            style: a style or its name (parts left out are the default's).
            seed: of the request's own generator; None draws one. The same seed gives the same
                samples on the same machine.
            speed: 0.25 .. 4; 2 speaks twice as fast.

        Returns:
            float32 [N] in [-1, 1] and its rate in Hz.

        Raises:
            ValueError: any argument outside what is stated, or longer than `limits.max_seconds`.
        """
        pieces = list(self.decode_stream(units, style, seed, speed))
        return np.concatenate(pieces), self.backend.output_rate

    def decode_stream(
        self,
        units: Iterable[int],
        style: str | Style = DEFAULT_STYLE,
        seed: int | None = None,
        speed: float = 1.0,
    ) -> Iterator[Samples]:
        """`decode` in pieces of about a second, each made when it is asked for.

        Joined they are what `decode` returns. Arguments and errors as there. Arguments are checked
        at once; that the result is too long shows at the first piece.
        """
        checked = self.check_units(units)
        chosen = style if isinstance(style, Style) else parse_style(style)
        self.backend.styles.row(chosen)
        if isinstance(speed, bool) or not MIN_SPEED <= speed <= MAX_SPEED:
            raise ValueError(f"speed={speed} is outside {MIN_SPEED}..{MAX_SPEED}; 1 is normal")
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(_checked_seed(seed))
        pieces = self.backend.stream(
            torch.tensor(checked),
            chosen,
            speed=float(speed),
            generator=generator,
            max_samples=int(self.limits.max_seconds * self.backend.output_rate),
        )
        return (piece.numpy() for piece in pieces)

    def check_units(self, units: Iterable[int]) -> list[int]:
        """The units as a list of ints.

        Raises:
            ValueError: none or too many, not whole numbers, or outside the codebook.
        """
        if isinstance(units, Tensor | np.ndarray):
            units = units.tolist()
        try:
            checked = [operator.index(unit) for unit in units]
        except TypeError as error:
            raise ValueError(f"units must be whole numbers: {error}") from error
        if not 1 <= len(checked) <= MAX_UNITS:
            raise ValueError(
                f"{len(checked)} units were given; 1 to {MAX_UNITS} can be spoken at once"
            )
        for position, unit in enumerate(checked):
            if not 0 <= unit < self.backend.num_units:
                raise ValueError(
                    f"unit {unit} at position {position} is outside "
                    f"0..{self.backend.num_units - 1}; cut the sequence at the first id that is "
                    "not a unit"
                )
        return checked


def collapse(units: Iterable[int]) -> list[int]:
    """One of each run of equal units: 5, 5, 7, 7, 5 → 5, 7, 5."""
    return [unit for unit, _ in groupby(units)]


def _checked_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise ValueError(f"seed={seed!r} must be a whole number")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed={seed} does not fit into 64 bits; take a smaller one")
    return int(seed)
