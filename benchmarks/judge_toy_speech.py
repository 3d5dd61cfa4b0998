"""Is what the toy speech codec makes of speech still understood? Asks two speech recognisers.

    apt-get install flite
    pip install --no-deps -r requirements/eval.lock
    python benchmarks/judge_toy_speech.py

flite (voice slt) says number words, strings of three digits and short sentences; each is encoded
with repeats collapsed, spoken again by the codec in both genders, and judged by Whisper tiny.en
(free vocabulary; word error rate, with figures written out and homophones counted as right) and by
pocketsphinx (any sequence of number words; exact matches).
"""

from __future__ import annotations

import argparse
import random

import numpy as np

from vllm_dynin.processors.codecs.speech import TOY_SPEECH_DIRECTORY, SpeechCodec
from vllm_dynin.processors.codecs.toy_speech import canonical_units
from vllm_dynin.training_ext.codecs.toy_speech_fit import speak
from vllm_dynin.training_ext.evaluate.hearing import Listener, Sphinx, Whisper, hear_all
from vllm_dynin.training_ext.evaluate.words import SPOKEN_NUMBERS, spoken_words, word_error_rate
from vllm_dynin.training_ext.tiny.words import DIGIT_WORDS

SENTENCES = ["the old man put his boat into the water", "please choose a number"]


def texts(num_strings: int) -> list[str]:
    rng = random.Random(5)
    strings = [" ".join(rng.choice(DIGIT_WORDS) for _ in range(3)) for _ in range(num_strings)]
    answers = [f"the answer is {word}" for word in DIGIT_WORDS]
    return [*SPOKEN_NUMBERS, *strings, *answers, *SENTENCES]


def edits(hypothesis: list[int], reference: list[int]) -> int:
    row = list(range(len(reference) + 1))
    for i, unit in enumerate(hypothesis, 1):
        corner, row[0] = row[0], i
        for j, other in enumerate(reference, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (unit != other))
    return row[-1]


def asked(judges: tuple[Listener, ...], samples: np.ndarray, rate: int) -> list[str]:
    """What each judge hears."""
    return [hear_all(judge, [(samples, rate)])[0] for judge in judges]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=str(TOY_SPEECH_DIRECTORY))
    parser.add_argument("--strings", type=int, default=30, help="strings of three digits")
    options = parser.parse_args()
    codec = SpeechCodec.from_pretrained(options.checkpoint)
    judges = Whisper(), Sphinx(SPOKEN_NUMBERS)
    heard: dict[str, list[tuple[str, str, str]]] = {}
    wrong = expected = num_units = 0
    seconds = 0.0
    for text in texts(options.strings):
        spoken = speak(text, "slt")
        units = codec.encode(spoken.waveform, 16_000)
        reference = canonical_units(codec.backend.config, (phone for phone, _ in spoken.segments))
        wrong, expected = wrong + edits(units, reference), expected + len(reference)
        num_units, seconds = num_units + len(units), seconds + len(spoken.waveform) / 16_000
        heard.setdefault("original", []).append(
            (text, *asked(judges, spoken.waveform.numpy(), 16_000))
        )
        for gender in ("female", "male"):
            samples, rate = codec.decode(units, style=f"gender-{gender}", seed=0)
            result = (text, *asked(judges, samples, rate))
            heard.setdefault(f"codec, {gender}", []).append(result)
    print(
        f"{seconds:.0f} s of speech, {num_units / seconds:.1f} units/s; "
        f"units differ from the text's in {wrong / expected:.1%}"
    )
    for who, results in heard.items():
        references, whisper = zip(*((spoken_words(t), w) for t, w, _ in results), strict=True)
        numbers = [(t, s) for t, _, s in results if set(t.split()) <= set(SPOKEN_NUMBERS)]
        right = sum(text == sphinx for text, sphinx in numbers)
        exact = sum(a == b for a, b in zip(references, whisper, strict=True))
        print(
            f"{who}: Whisper WER {word_error_rate(references, whisper):.3f}, "
            f"exact {exact}/{len(results)}; pocketsphinx exact {right}/{len(numbers)}"
        )
        misheard = [(a, b) for a, b in zip(references, whisper, strict=True) if a != b]
        print("   misheard by Whisper:", misheard)


if __name__ == "__main__":
    main()
