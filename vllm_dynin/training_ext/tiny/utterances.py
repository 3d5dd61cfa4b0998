"""Speech of the tiny world: digits said by the synthesiser flite, and their units.

    apt-get install flite
    python -m vllm_dynin.training_ext.tiny.utterances

writes `units.txt`, which ships with the package, so that training needs no synthesiser. One line is
one utterance: its digits, then its units.
"""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vllm_dynin.processors.codecs.audio_blocks import Samples
from vllm_dynin.processors.codecs.audio_io import load_audio
from vllm_dynin.processors.codecs.speech import SpeechCodec
from vllm_dynin.processors.media import AUDIO_RATE
from vllm_dynin.training_ext.tiny.words import in_words, is_utterance_held_out

UNITS_FILE = Path(__file__).parent / "units.txt"
MAX_DIGITS = 4
"""Digits of the longest utterance."""
VOICES = ("slt", "rms", "awb", "kal16")
"""flite's voices; the first one speaks most."""
_STRETCH, _PITCH = (0.9, 1.15), (0.85, 1.15)  # ranges of the variation
_USUAL_PITCH = {"slt": 170, "rms": 105, "awb": 130, "kal16": 105}  # Hz
_NUM_LONGER = 260  # sequences of three and of four digits each, of 1,000 and 10,000 there are


@dataclass(frozen=True, kw_only=True)
class Voice:
    """How flite says something.

    Args:
        name: one of `VOICES`.
        stretch: of durations; 1 is its usual speed.
        pitch_hz: mean pitch; None is its usual one.
    """

    name: str = VOICES[0]
    stretch: float = 1.0
    pitch_hz: float | None = None


@dataclass(frozen=True)
class Utterance:
    """Spoken digits.

    Args:
        digits: what is said.
        units: of the speech codec, repeats collapsed.
        is_plain: said by the first voice as it usually speaks.
    """

    digits: tuple[int, ...]
    units: tuple[int, ...]
    is_plain: bool


def say(digits: Sequence[int], voice: Voice = Voice()) -> Samples:
    """Let flite say digits.

    Returns:
        float32 [N] at `AUDIO_RATE`.

    Raises:
        RuntimeError: flite is not installed.
    """
    if (flite := shutil.which("flite")) is None:
        raise RuntimeError("flite is not installed; on Debian: apt-get install flite")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.wav"
        command = [flite, "-voice", voice.name, "-t", in_words(digits), "-o", str(path)]
        command += ["--setf", f"duration_stretch={voice.stretch}"]
        if voice.pitch_hz is not None:
            command += ["--setf", f"int_f0_target_mean={voice.pitch_hz}"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return load_audio(path, target_rate=AUDIO_RATE)


def drawn_voice(rng: random.Random) -> Voice:
    """One of flite's voices, a little faster or slower, higher or lower than usual."""
    name = rng.choice(VOICES)
    return Voice(
        name=name,
        stretch=round(rng.uniform(*_STRETCH), 3),
        pitch_hz=round(_USUAL_PITCH[name] * rng.uniform(*_PITCH), 1),
    )


def sequences(*, is_held_out: bool) -> list[tuple[int, ...]]:
    """The digit sequences on one side of the split: all of one and two, some of three and four."""
    rng = random.Random("utterances")
    found = list(
        itertools.chain.from_iterable(itertools.product(range(10), repeat=n) for n in (1, 2))
    )
    for count in range(3, MAX_DIGITS + 1):
        everything = list(itertools.product(range(10), repeat=count))
        found += rng.sample(everything, _NUM_LONGER)
    return [digits for digits in found if is_utterance_held_out(digits) == is_held_out]


@cache
def utterances(path: Path = UNITS_FILE) -> tuple[Utterance, ...]:
    """All utterances that ship with the package; `is_utterance_held_out` tells which are for tests.

    Raises:
        ValueError: a line is not digits, a sign and units.
    """
    return tuple(_parse(line) for line in path.read_text().splitlines())


def _parse(line: str) -> Utterance:
    try:
        digits, sign, *units = line.split()
        return Utterance(
            digits=tuple(map(int, digits)), units=tuple(map(int, units)), is_plain=sign == "="
        )
    except ValueError as error:
        raise ValueError(
            f"{line!r} is no utterance: digits, = or ~, units; write the file anew with "
            "python -m vllm_dynin.training_ext.tiny.utterances"
        ) from error


def _spoken(codec: SpeechCodec, variations: int = 3) -> Iterator[Utterance]:
    for is_held_out in (False, True):
        for digits in sequences(is_held_out=is_held_out):
            rng = random.Random(f"voices {digits}")
            yield Utterance(digits, tuple(codec.encode(say(digits), AUDIO_RATE)), True)
            for _ in range(0 if is_held_out else variations * (4 if len(digits) == 1 else 1)):
                units = codec.encode(say(digits, drawn_voice(rng)), AUDIO_RATE)
                yield Utterance(digits, tuple(units), False)


def write(path: Path = UNITS_FILE) -> int:
    """Let flite say everything and write the file; the number of utterances."""
    lines = [
        f"{''.join(map(str, u.digits))} {'=' if u.is_plain else '~'} {' '.join(map(str, u.units))}"
        for u in _spoken(SpeechCodec.from_pretrained())
    ]
    path.write_text("\n".join(lines) + "\n")
    return len(lines)


if __name__ == "__main__":
    print(f"{write()} utterances in {UNITS_FILE}")
