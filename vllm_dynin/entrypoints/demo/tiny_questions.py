"""What the trained `dynin-tiny` is asked: held-out questions of its world, with right answers.

No request says how it is decoded: the checkpoint does.
"""

from __future__ import annotations

import difflib
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from PIL import Image

from vllm_dynin.api import Result
from vllm_dynin.codec_runner import Sound
from vllm_dynin.entrypoints.demo.questions import Inputs, Question
from vllm_dynin.processors.media import AUDIO_RATE
from vllm_dynin.processors.templates import read_units
from vllm_dynin.requests import (
    EditImage,
    ImageToText,
    SpeechToText,
    TextToImage,
    TextToSpeech,
    TextToText,
    VideoToText,
)
from vllm_dynin.tokens import Vocabulary

_SEED = 7
_SOUNDS_ALIKE = 0.9  # of the units, in order, that must be those of the same words said by flite
_LOOKS_ALIKE = 0.9  # of the cells of an edited picture


def tiny_questions(vocabulary: Vocabulary) -> tuple[list[Question], Inputs]:
    """The questions, and the first of their media for the codecs.

    Args:
        vocabulary: of the checkpoint.

    Raises:
        ValueError: scikit-learn, where the digits come from, is not installed.
    """
    from vllm_dynin.training_ext.tiny import digits

    rng = random.Random(_SEED)
    shown = rng.sample(digits.test_indices(), 5)
    recordings = list(_recordings(rng))
    questions = [
        *_word_lists(rng),
        *_pictures(shown[:2]),
        *_clips(shown[2:4]),
        *_heard(recordings),
        *_said(rng, vocabulary),
        *_drawn(),
        *_edited(shown[4]),
    ]
    clip = digits.clip(digits.image(shown[2], digits.CLIP_SIDE), "left")
    inputs = Inputs(
        images={"digit": digits.image(shown[0])},
        clip=np.stack([np.asarray(frame) for frame in clip]),
        speech=recordings[0][1],
        speech_source="flite" if shutil.which("flite") else "the small speech codec's own voice",
    )
    return questions, inputs


def _says(expected: str) -> Callable[[Result], bool]:
    return lambda result: (result.text or "").strip() == expected


def _word_lists(rng: random.Random) -> Iterator[Question]:
    from vllm_dynin.training_ext.tiny import words

    for operation in words.OPERATIONS:
        given = words.draw_list(rng, words.MAX_WORDS, is_held_out=True)
        asked = f"{words.PHRASES[operation][0]} {words.in_words(given)}"
        expected = words.in_words(words.carry_out(operation, given))
        yield Question(
            title="text → text",
            asked=asked,
            request=TextToText(asked),
            expected=expected,
            is_right=_says(expected),
        )


def _pictures(indices: list[int]) -> Iterator[Question]:
    from vllm_dynin.training_ext.tiny import digits, words

    for index in indices:
        picture, asked = digits.image(index), words.IMAGE_QUESTIONS[0]
        expected = words.DIGIT_WORDS[digits.label(index)]
        yield Question(
            title="image → text",
            asked=asked,
            request=ImageToText(picture, asked),
            inputs=(picture,),
            expected=expected,
            is_right=_says(expected),
        )


def _clips(indices: list[int]) -> Iterator[Question]:
    from vllm_dynin.training_ext.tiny import digits, words

    for index, way in zip(indices, digits.DIRECTIONS, strict=False):
        frames = digits.clip(digits.image(index, digits.CLIP_SIDE), way)
        asked = words.VIDEO_QUESTIONS[0]
        expected = words.motion(digits.label(index), way)
        clip = np.stack([np.asarray(frame) for frame in frames])
        yield Question(
            title="video → text",
            asked=asked,
            request=VideoToText(clip, asked),
            inputs=(frames,),
            expected=expected,
            is_right=_says(expected),
        )


def _recordings(rng: random.Random) -> Iterator[tuple[str, Sound]]:
    """Sequences that were never trained on, by flite, or by the codec where flite is missing."""
    from vllm_dynin.processors.codecs.speech import SpeechCodec
    from vllm_dynin.training_ext.tiny import utterances, words

    held_out = [u for u in utterances.utterances() if words.is_utterance_held_out(u.digits)]
    for utterance in rng.sample(held_out, 2):
        if shutil.which("flite"):
            sound = Sound(utterances.say(utterance.digits), AUDIO_RATE)
        else:
            sound = Sound(*SpeechCodec.from_pretrained().decode(utterance.units, seed=_SEED))
        yield words.in_words(utterance.digits), sound


def _heard(recordings: list[tuple[str, Sound]]) -> Iterator[Question]:
    for expected, sound in recordings:
        recording = (sound.waveform, sound.sample_rate)
        yield Question(
            title="speech → text",
            asked="(transcribe)",
            request=SpeechToText(recording),
            inputs=(sound,),
            expected=expected,
            is_right=_says(expected),
        )


def _said(rng: random.Random, vocabulary: Vocabulary) -> Iterator[Question]:
    from vllm_dynin.training_ext.tiny import utterances, words

    held_out = [u for u in utterances.utterances() if words.is_utterance_held_out(u.digits)]
    for utterance in rng.sample(held_out, 2):
        expected = words.in_words(utterance.digits)
        yield Question(
            title="text → speech",
            asked=expected,
            request=TextToSpeech(
                expected,
                seed=_SEED,
            ),
            expected=f"the units of “{expected}”",
            is_right=partial(_sounds_like, utterance.units, vocabulary),
        )


def _sounds_like(units: Sequence[int], vocabulary: Vocabulary, result: Result) -> bool:
    said = read_units(result.token_ids, vocabulary)
    return difflib.SequenceMatcher(None, units, said, autojunk=False).ratio() >= _SOUNDS_ALIKE


def _drawn() -> Iterator[Question]:
    from vllm_dynin.training_ext.evaluate.seeing import Judge
    from vllm_dynin.training_ext.tiny import digits, words

    known = range(digits.num_train())
    judge = Judge(
        [[digits.black_and_white(digits.image(index))] for index in known],
        [str(digits.label(index)) for index in known],
    )
    for digit, prompt in zip((7, 3, 0), words.DRAW_PROMPTS, strict=False):
        asked = prompt.format(words.DIGIT_WORDS[digit])
        yield Question(
            title="text → image",
            asked=asked,
            request=TextToImage(
                asked,
                seed=_SEED,
                trajectory=True,
            ),
            expected=f"looks like {digit}",
            is_right=partial(_looks_like, judge.judge, str(digit)),
        )


def _looks_like(
    judge: Callable[[Sequence[Sequence[Image.Image]]], list[str]], digit: str, result: Result
) -> bool:
    return result.image is not None and judge([[result.image]]) == [digit]


def _edited(index: int) -> Iterator[Question]:
    from vllm_dynin.training_ext.evaluate.seeing import cells
    from vllm_dynin.training_ext.tiny import digits

    source = digits.black_and_white(digits.image(index))
    for edit, phrases in digits.EDITS.items():
        goal = cells(digits.edited(source, edit))

        def is_alike(result: Result, goal: np.ndarray = goal) -> bool:
            if result.image is None:
                return False
            return float((abs(cells(result.image) - goal) < 0.5).mean()) >= _LOOKS_ALIKE

        yield Question(
            title="image → image",
            asked=phrases[0],
            request=EditImage(source, phrases[0], seed=_SEED),
            inputs=(source,),
            expected=f"the picture after: {edit}",
            is_right=is_alike,
        )
