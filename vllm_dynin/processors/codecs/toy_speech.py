"""A small speech codec: phone-half units found by a classifier and Viterbi, spoken by a vocoder.

It stands where the published tokenizer stands, at a size that ships with a demo: 81 units, about 20
a second once repeats are collapsed. A unit is half of a phone (the pause is one unit), so what a
unit sequence says follows from the text nearly letter by letter, which a small language model can
learn. Analysis is a frame classifier under a left-to-right state model. Synthesis speaks stored
spectral trajectories, chosen by the unit and the phone beside it. `training_ext/codecs/
toy_speech_fit.py` makes all numbers from synthesised speech.

Shapes: T frames of 10 ms, U units, K mel bands, P phones with the pause, R trajectories.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vllm_dynin.processors.codecs.speech_features import LogMel, LogMelConfig
from vllm_dynin.processors.codecs.styles import STYLES, Style, StyleTable
from vllm_dynin.processors.codecs.toy_vocoder import HOP, SAMPLE_RATE, vocode

TOY_MODEL_TYPE = "dynin_toy_speech_tokenizer"
HALVES = 2
"""Units per phone."""
PAUSE = 0
"""The unit of silence, and the number of the pause among the phones."""
PAUSE_NAME = "pau"
"""What the pause is called where phones have names, as in flite."""
POINTS = 3
"""Points of a stored trajectory, at 1/6, 1/2 and 5/6 of the unit."""
_DURATION_FACTORS = {"fast": 0.8, "normal": 1.0, "slow": 1.25}
_PITCH_FACTORS = {"high": 1.25, "low": 0.8, "normal": 1.0}
# One voice is stored. A woman's is made from it by a shorter vocal tract and a higher pitch.
_GENDERS = {"female": (1.15, 1.75), "male": (1.0, 1.0)}
# Speech falls in pitch towards its end.
_PITCH_START, _PITCH_FALL = 1.08, 0.2


@dataclass(frozen=True, kw_only=True)
class ToySpeechConfig:
    """Sizes of the toy codec.

    Args:
        phones: names of the phones, the pause left out; unit 1 + 2 · p + h is half h of phone p.
        num_trajectories: stored ones, at least one per unit.
        num_mels: bands of analysis and synthesis.
        context: frames on each side that the classifier sees.
        hidden: its width.
        max_frames_per_unit: cap on a duration, in frames of 10 ms.

    Raises:
        ValueError: no phones, or fewer trajectories than units.
    """

    phones: tuple[str, ...]
    num_trajectories: int
    num_mels: int = 40
    context: int = 6
    hidden: int = 160
    max_frames_per_unit: int = 40

    def __post_init__(self) -> None:
        if not self.phones or self.num_trajectories < self.num_units:
            raise ValueError(
                f"{len(self.phones)} phones with {self.num_trajectories} trajectories: at least "
                "one phone, and one trajectory per unit, are needed"
            )

    @property
    def num_units(self) -> int:
        """The pause and two halves of each phone."""
        return 1 + HALVES * len(self.phones)

    @property
    def unit_names(self) -> list[str]:
        """What each unit stands for: `['pau', 'aa1', 'aa2', 'ae1', …]`."""
        return [PAUSE_NAME, *(f"{p}{half + 1}" for p in self.phones for half in range(HALVES))]

    @property
    def features(self) -> LogMelConfig:
        """The analysis front end."""
        return LogMelConfig(
            sample_rate=SAMPLE_RATE, window=400, hop=HOP, num_mels=self.num_mels, pad_to=1
        )


def phone_of(units: Tensor) -> Tensor:
    """Number of each unit's phone, 0 for the pause."""
    return (units + 1) // HALVES


def neighbour_of(units: Tensor) -> Tensor:
    """The phone beside each unit that colours it: the one before a first half, else the next.

    Beyond the ends lies the pause. int64 [U'] → [U'].
    """
    phones = F.pad(phone_of(units), (1, 1), value=PAUSE)
    is_first_half = units % HALVES == 1
    return torch.where(is_first_half, phones[:-2], phones[2:])


def canonical_units(config: ToySpeechConfig, phones: Iterable[str]) -> list[int]:
    """The unit sequence, repeats collapsed, that phones call for.

    Args:
        config: of the codec.
        phones: names, `pau` for the pause.

    Raises:
        ValueError: the codec has no such phone.
    """
    units: list[int] = []
    for phone in phones:
        if phone != PAUSE_NAME:
            first = 1 + HALVES * config.phones.index(phone)
            units += [first, first + 1]
        elif not units or units[-1] != PAUSE:
            units.append(PAUSE)
    return units


def toy_config(config: Mapping[str, Any]) -> ToySpeechConfig:
    """Sizes from a config.json without its `model_type`.

    Raises:
        ValueError: unknown or missing entries.
    """
    try:
        return ToySpeechConfig(**{**config, "phones": tuple(config["phones"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"config.json does not describe a toy speech codec: {error}") from error


class ToySpeech(nn.Module):
    """Analysis and synthesis. Everything fitted lies in the state dict.

    See `SpeechBackend` for what the public attributes mean.
    """

    input_rate = output_rate = SAMPLE_RATE
    samples_per_unit = HOP
    max_chunk_seconds = 60

    def __init__(self, config: ToySpeechConfig) -> None:
        super().__init__()
        self.config = config
        self.num_units, self.styles = config.num_units, toy_styles()
        self.min_samples = config.features.min_samples
        units, phones, rows = config.num_units, len(config.phones) + 1, config.num_trajectories
        self.features = LogMel(config.features, is_persistent=False)
        self.hidden = nn.Linear(config.num_mels * (2 * config.context + 1), config.hidden)
        self.score = nn.Linear(config.hidden, units)
        self.log_prior = nn.Parameter(torch.zeros(units))  # of a frame being the unit
        self.log_stay = nn.Parameter(torch.zeros(units))  # of the next frame being the same unit
        self.log_leave = nn.Parameter(torch.zeros(units))
        self.log_next = nn.Parameter(torch.zeros(phones, phones))  # of the next phone
        self.register_buffer("trajectory_of", torch.zeros(units, phones, dtype=torch.int64))
        self.trajectory_of: Tensor
        self.envelope = nn.Parameter(torch.zeros(rows, POINTS, config.num_mels))  # see `vocode`
        self.voicing = nn.Parameter(torch.zeros(rows, POINTS))
        self.frames = nn.Parameter(torch.ones(rows))  # mean duration
        self.pitch_hz = nn.Parameter(torch.full((1,), 100.0))
        self.float().eval().requires_grad_(False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ToySpeech:
        """Build with zero weights from a config.json without its `model_type`.

        Raises:
            ValueError: unknown or missing entries.
        """
        return cls(toy_config(config))

    def stacked(self, waveform_N: Tensor) -> Tensor:
        """[T, num_mels · (2 · context + 1)]: normalised log-mel frames with their neighbours."""
        features_KT, length = self.features(waveform_N)
        context = self.config.context
        padded = F.pad(features_KT[None, :, :length], (context, context), mode="replicate")[0]
        return padded.unfold(1, 2 * context + 1, 1).transpose(0, 1).flatten(1)

    def classify(self, stacked: Tensor) -> Tensor:
        """Log-posteriors of the units for `stacked` frames, [T, U]."""
        return self.score(F.relu(self.hidden(stacked))).log_softmax(-1)

    @torch.inference_mode()
    def raw_units(self, waveform_N: Tensor) -> Tensor:
        """The unit of each 10 ms frame, by the most probable path of the state model.

        Args:
            waveform_N: float32 [N], 16 kHz mono, any scale, at least 400 samples.

        Returns:
            int64 [ceil(N / 160)].
        """
        log_posteriors = self.classify(self.stacked(waveform_N))
        return viterbi(log_posteriors - self.log_prior, self.log_transitions())

    def log_transitions(self) -> Tensor:
        """[U, U] log-probability of unit j in the frame after unit i: the same, or what may follow.

        A first half is followed by its second half; a second half and the pause by the first half
        of any phone or the pause.
        """
        units = self.config.num_units
        matrix = torch.full((units, units), -math.inf, dtype=self.log_next.dtype)
        firsts = torch.tensor([PAUSE, *range(1, units, HALVES)])
        lasts = torch.tensor([PAUSE, *range(HALVES, units, HALVES)])
        matrix[lasts[:, None], firsts[None]] = self.log_leave[lasts, None] + self.log_next
        matrix[firsts[1:], lasts[1:]] = self.log_leave[firsts[1:]]
        matrix.fill_diagonal_(0.0)
        return matrix + torch.diag(self.log_stay)

    def durations(self, units: Tensor, speed: float) -> Tensor:
        """int64 [U'] frames per unit: the stored means divided by the speed, at least 1."""
        frames = torch.round(self.frames[self._trajectories(units)] / speed)
        return frames.clamp(1, self.config.max_frames_per_unit).long()

    def _trajectories(self, units: Tensor) -> Tensor:
        return self.trajectory_of[units, neighbour_of(units)]

    def tracks(self, units: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The trajectories of units, each stretched to its frames and joined smoothly.

        Returns:
            [T, K] log-envelope and [T] voicing, T the sum of frames.
        """
        rows = self._trajectories(units)
        owner = torch.repeat_interleave(torch.arange(len(units)), frames)
        start = F.pad(frames.cumsum(0), (1, 0))[:-1]
        within = ((torch.arange(len(owner)) - start[owner]).float() + 0.5) / frames[owner]
        place = (within * POINTS - 0.5).clamp(0, POINTS - 1)
        low = place.long().clamp(max=POINTS - 2)
        both = torch.cat([self.envelope, self.voicing[..., None]], dim=-1)[rows]
        track = torch.lerp(both[owner, low], both[owner, low + 1], (place - low)[:, None])
        padded = F.pad(track.T[None], (1, 1), mode="replicate")[0]
        smooth = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
        return smooth[:-1].T, smooth[-1]

    @torch.inference_mode()
    def stream(
        self,
        units: Tensor,
        style: Style,
        *,
        speed: float = 1.0,
        generator: torch.Generator | None = None,
        frames: Tensor | None = None,
        max_samples: int | None = None,
    ) -> Iterator[Tensor]:
        """Speak units, a second at a time.

        Args:
            units: int64 [U'], U' ≥ 1, repeats collapsed.
            style: one of `toy_styles()`.
            speed: > 0, divides the durations on top of the style's.
            generator: owned and advanced by the caller; draws the breath noise.
            frames: int64 [U'], durations to use instead of the stored ones.
            max_samples: refuse to make more.

        Yields:
            float32 [n] in [-1, 1]; 160 samples per frame in total.

        Raises:
            ValueError: more than max_samples.
        """
        if frames is None:
            frames = self.durations(units, speed / _DURATION_FACTORS[style.speed])
        total = int(frames.sum()) * HOP
        if max_samples is not None and total > max_samples:
            raise ValueError(
                f"{len(units)} units would last {total / SAMPLE_RATE:.1f} s; at most "
                f"{max_samples / SAMPLE_RATE:.1f} s are made at once: send fewer units or a "
                "higher speed"
            )
        envelope, voicing = self.tracks(units, frames)
        warp, gender_pitch = _GENDERS[style.gender]
        fall = _PITCH_START - _PITCH_FALL * torch.linspace(
            0.0, 1.0, len(voicing), dtype=torch.float32
        )
        hz = self.pitch_hz * gender_pitch * _PITCH_FACTORS[style.pitch] * fall
        yield from vocode(envelope, voicing, hz, generator, warp)


def toy_styles() -> StyleTable:
    """The styles this codec has: any gender, speed and pitch, but only a neutral emotion."""
    names = [style.name for style in STYLES if style.emotion == "neutral"]
    return StyleTable({name: row for row, name in enumerate(names)}, len(names))


def viterbi(log_likelihood_TU: Tensor, log_transition_UU: Tensor) -> Tensor:
    """The state sequence of the highest score; any state may begin and end it. int64 [T]."""
    score = log_likelihood_TU[0]
    back = torch.empty(log_likelihood_TU.shape, dtype=torch.int64)
    for t in range(1, len(log_likelihood_TU)):
        best, back[t] = (score[:, None] + log_transition_UU).max(0)
        score = best + log_likelihood_TU[t]
    path = [int(score.argmax())]
    for t in range(len(log_likelihood_TU) - 1, 0, -1):
        path.append(int(back[t, path[-1]]))
    return torch.tensor(path[::-1])
