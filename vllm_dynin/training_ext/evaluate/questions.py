"""Held-out questions of the tiny world, as requests to the engine.

What is asked was never trained on: digits of the test split, sets and sequences of digits on the
far side of the split, recordings spoken anew.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import msgspec
import numpy as np
from PIL import Image

from vllm_dynin.canvas import Task
from vllm_dynin.defaults import Defaults
from vllm_dynin.processors.codecs.audio_blocks import Samples
from vllm_dynin.processors.media import AUDIO_RATE
from vllm_dynin.requests import (
    EditImage,
    ImageToText,
    Request,
    SpeechToText,
    TextToImage,
    TextToSpeech,
    TextToText,
    VideoToText,
)
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.training_ext.tiny import decoding, digits, utterances, words

GUIDED, UNGUIDED = "guided", "unguided"
"""Variants of text to image: with the guidance that is set, and with none."""
USUAL_VOICE, DRAWN_VOICE = "usual voice", "drawn voice"
"""Variants of speech to text: the voice most of the training is spoken in, or one of all voices at
a pace and pitch of its own."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One question with what is needed to judge the answer.

    Args:
        task: the direction.
        request: to the engine.
        asked: in words, for a reader.
        expected: the right answer in words; what is to be seen or heard in a medium.
        plain: the answer of a rule that understands nothing, where the direction has one.
        pictures: images or frames that were shown.
        sound: float32 [N] at `AUDIO_RATE`: the recording, or one of what is to be said.
        target: the right image, for edits.
        variant: of the same direction, scored on its own.
    """

    task: Task
    request: Request
    asked: str
    expected: str
    plain: str | None = None
    pictures: tuple[Image.Image, ...] = ()
    sound: Samples | None = None
    target: Image.Image | None = None
    variant: str = ""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What can be changed about how the questions are asked.

    Args:
        options: of decoding, by direction; what is set there counts before everything else.
        is_tuned: decode as `dynin-tiny` says it is best asked (`tiny.decoding`), whatever the
            checkpoint says, so that its stages and relatives are compared with it; False leaves
            length, options and temperature to the checkpoint and the serving defaults.
        with_unguided: ask for every image once more without guidance.
    """

    options: Mapping[Task, DenoiseParams] = field(default_factory=dict)
    is_tuned: bool = True
    with_unguided: bool = True

    def decoding(self, task: Task) -> DenoiseParams:
        """All options of one direction."""
        given = self.options.get(task, DenoiseParams())
        if not self.is_tuned:
            return given
        base = decoding.DECODING.get(task, Defaults()).options()
        if given.cfg_scale is not None:  # the same quantity under another name
            base = msgspec.structs.replace(base, guidance_scale=None)
        is_set = {k: v for k, v in msgspec.structs.asdict(given).items() if v is not None}
        return msgspec.structs.replace(base, **is_set)

    def temperature(self, task: Task) -> float | None:
        """Of one direction; None is the serving default."""
        return decoding.DECODING[task].temperature if self.is_tuned else None

    def max_tokens(self, task: Task) -> int | None:
        """Length of an answer of one direction; None is the serving default."""
        return decoding.DECODING[task].max_tokens if self.is_tuned else None


def ask(task: Task, count: int, seed: int, settings: Settings) -> list[Question]:
    """Questions of one direction.

    Args:
        task: the direction.
        count: how many; pictures and recordings are limited by what is held out.
        seed: of the draw, and of the answers.
        settings: of decoding.

    Raises:
        ValueError: the direction is not measured, or there is nothing to ask.
    """
    if task not in _ASK or count < 1:
        raise ValueError(
            f"{count} questions of {task.value!r}; ask at least one of "
            f"{', '.join(known.value for known in _ASK)}"
        )
    questions = _ASK[task](count, random.Random(f"held out {task.value} {seed}"))
    decoded = [
        _decoded(question, settings, seed * count + number)
        for number, question in enumerate(questions)
    ]
    if task is not Task.TEXT_TO_IMAGE:
        return decoded
    guided = [replace(question, variant=GUIDED) for question in decoded]
    if not settings.with_unguided:
        return guided
    off = msgspec.structs.replace(settings.decoding(task), cfg_scale=None, guidance_scale=0.0)
    return guided + [
        replace(question, variant=UNGUIDED, request=replace(question.request, options=off))
        for question in decoded
    ]


def _decoded(question: Question, settings: Settings, seed: int) -> Question:
    """The question with everything about how its answer is decoded."""
    task = question.task
    request = replace(
        question.request,
        options=settings.decoding(task),
        max_tokens=settings.max_tokens(task),
        temperature=settings.temperature(task),
        seed=seed,
    )
    return replace(question, request=request)


def _text_to_text(count: int, rng: random.Random) -> list[Question]:
    questions = []
    for number in range(count):
        operation = words.OPERATIONS[number % len(words.OPERATIONS)]
        num_words = rng.randint(words.MIN_WORDS, words.MAX_WORDS)
        given = words.draw_list(rng, num_words, is_held_out=True)
        prompt = f"{rng.choice(words.PHRASES[operation])} {words.in_words(given)}"
        questions.append(
            Question(
                task=Task.TEXT_TO_TEXT,
                request=TextToText(prompt),
                asked=prompt,
                expected=words.in_words(words.carry_out(operation, given)),
                plain=words.in_words(given),
            )
        )
    return questions


def _image_to_text(count: int, rng: random.Random) -> list[Question]:
    questions = []
    for index in _drawn_digits(count, rng):
        picture, prompt = digits.image(index), rng.choice(words.IMAGE_QUESTIONS)
        questions.append(
            Question(
                task=Task.IMAGE_TO_TEXT,
                request=ImageToText(picture, prompt),
                asked=prompt,
                expected=words.in_words([digits.label(index)]),
                pictures=(picture,),
            )
        )
    return questions


def _video_to_text(count: int, rng: random.Random) -> list[Question]:
    questions = []
    for index in _drawn_digits(count, rng):
        direction = rng.choice(list(digits.DIRECTIONS))
        frames = digits.clip(digits.image(index, digits.CLIP_SIDE), direction)
        prompt = rng.choice(words.VIDEO_QUESTIONS)
        questions.append(
            Question(
                task=Task.VIDEO_TO_TEXT,
                request=VideoToText(np.stack([np.asarray(f) for f in frames]), prompt),
                asked=prompt,
                expected=f"{words.in_words([digits.label(index)])} moving {direction}",
                pictures=tuple(frames),
            )
        )
    return questions


def _speech_to_text(count: int, rng: random.Random) -> list[Question]:
    """Every sequence twice: in the voice that speaks most in training, and in a drawn one."""
    questions = []
    drawn = _drawn_utterances(count, rng)
    for variant in (USUAL_VOICE, DRAWN_VOICE):
        for said in drawn:
            is_usual = variant == USUAL_VOICE
            voice = utterances.Voice() if is_usual else utterances.drawn_voice(rng)
            sound = utterances.say(said, voice)
            questions.append(
                Question(
                    task=Task.SPEECH_TO_TEXT,
                    request=SpeechToText((sound, AUDIO_RATE)),
                    asked=f"(a recording of {voice.name})",
                    expected=words.in_words(said),
                    sound=sound,
                    variant=variant,
                )
            )
    return questions


def _text_to_speech(count: int, rng: random.Random) -> list[Question]:
    questions = []
    for said in _drawn_utterances(count, rng):
        sentence = words.in_words(said)
        questions.append(
            Question(
                task=Task.TEXT_TO_SPEECH,
                request=TextToSpeech(sentence),
                asked=sentence,
                expected=sentence,
                sound=utterances.say(said),
            )
        )
    return questions


def _text_to_image(count: int, rng: random.Random) -> list[Question]:
    questions = []
    for number in range(count):
        digit = number % 10
        word = words.in_words([digit])
        prompt = rng.choice(words.DRAW_PROMPTS).format(rng.choice((word, str(digit))))
        questions.append(
            Question(
                task=Task.TEXT_TO_IMAGE,
                request=TextToImage(prompt),
                asked=prompt,
                expected=word,
            )
        )
    return questions


def _image_to_image(count: int, rng: random.Random) -> list[Question]:
    questions = []
    for number, index in enumerate(_drawn_digits(count, rng)):
        edit = list(digits.EDITS)[number % len(digits.EDITS)]
        prompt = rng.choice(digits.EDITS[edit])
        source = digits.image(index)
        questions.append(
            Question(
                task=Task.IMAGE_TO_IMAGE,
                request=EditImage(source, prompt),
                asked=prompt,
                expected=words.in_words([digits.label(index)]),
                pictures=(source,),
                target=digits.edited(source, edit),
            )
        )
    return questions


def _drawn_digits(count: int, rng: random.Random) -> list[int]:
    """Different digits of the test split, in random order."""
    known = digits.test_indices()
    return rng.sample(known, min(count, len(known)))


def _drawn_utterances(count: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Different sequences that are never trained on: of each length as many, while there are."""
    lengths = range(2, utterances.MAX_DIGITS + 1)
    pools = [rng.sample(pool, len(pool)) for pool in map(_held_out_sequences, lengths)]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*pools))
    return list(itertools.islice((said for said in in_turn if said is not None), count))


@cache
def _held_out_sequences(length: int) -> list[tuple[int, ...]]:
    everything = itertools.product(range(10), repeat=length)
    return [said for said in everything if words.is_utterance_held_out(said)]


_ASK: dict[Task, Callable[[int, random.Random], list[Question]]] = {
    Task.TEXT_TO_TEXT: _text_to_text,
    Task.IMAGE_TO_TEXT: _image_to_text,
    Task.VIDEO_TO_TEXT: _video_to_text,
    Task.SPEECH_TO_TEXT: _speech_to_text,
    Task.TEXT_TO_SPEECH: _text_to_speech,
    Task.TEXT_TO_IMAGE: _text_to_image,
    Task.IMAGE_TO_IMAGE: _image_to_image,
}
