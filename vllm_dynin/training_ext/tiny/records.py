"""What `dynin-tiny` is trained on: records of the seven directions, with media as codes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from PIL import Image

from vllm_dynin.canvas import Task
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.training_ext.records import Record
from vllm_dynin.training_ext.tiny import digits, words
from vllm_dynin.training_ext.tiny.utterances import Utterance, utterances

NUM_LISTS = 12_000
"""Word tasks drawn for text to text."""
CODED_FRAMES = 5
"""Frames of a clip the model sees, evenly spaced."""

# Short utterances are few, so they come several times for each time that all are seen.
_HEARD = {1: 3, 2: 3, 3: 1, 4: 1}
_SAID = {1: 8, 2: 3, 3: 1, 4: 1}

Codes = tuple[int, ...]


def training_records(
    codec: ImageCodec, *, num_pictures: int = 12, num_clips: int = 6, seed: int = 0
) -> dict[Task, list[Record]]:
    """All training records.

    Args:
        codec: of the checkpoint.
        num_pictures: of each training digit, the unchanged one included.
        num_clips: of each training digit, likewise.
        seed: of what is drawn.
    """
    rng = random.Random(f"records {seed}")
    pictures, labels = _pictures(num_pictures, rng)
    codes = encode(codec, pictures, digits.IMAGE_SIDE)
    spoken = [u for u in utterances() if not words.is_utterance_held_out(u.digits)]
    records = [
        *_lists(rng),
        *_looked_at(codes, labels),
        *_drawn(codes, labels, rng),
        *_edited(codec, pictures, codes, rng),
        *_watched(codec, num_clips, rng),
        *_heard(spoken),
        *_said(spoken),
    ]
    by_task: dict[Task, list[Record]] = {}
    for record in records:
        by_task.setdefault(record.task, []).append(record)
    return by_task


def up_to(records: Sequence[Record], max_digits: int) -> list[Record]:
    """The records of a speech direction that say no more than so many digits."""
    return [one for one in records if len((one.answer or one.text).split()) <= max_digits]


def encode(codec: ImageCodec, pictures: Sequence[Image.Image], side: int) -> list[Codes]:
    """Codes of pictures, a few hundred at a time."""
    found: list[Codes] = []
    for start in range(0, len(pictures), 512):
        part = codec.encode(pictures[start : start + 512], resolution=side)
        found += [tuple(row) for row in part.tolist()]
    return found


def clip_codes(
    codec: ImageCodec, clips: Sequence[Sequence[Image.Image]]
) -> list[tuple[Codes, ...]]:
    """Codes of the frames of each clip that the model sees."""
    step = (digits.CLIP_FRAMES - 1) // (CODED_FRAMES - 1)
    frames = [frame for clip in clips for frame in clip[::step]]
    codes = encode(codec, frames, digits.CLIP_SIDE)
    return [
        tuple(codes[start : start + CODED_FRAMES]) for start in range(0, len(codes), CODED_FRAMES)
    ]


def _pictures(count: int, rng: random.Random) -> tuple[list[Image.Image], list[int]]:
    pictures, labels = [], []
    for index in range(digits.num_train()):
        plain = digits.image(index)
        pictures.append(plain)
        pictures += [digits.varied(plain, rng) for _ in range(count - 1)]
        labels += [digits.label(index)] * count
    return pictures, labels


def _lists(rng: random.Random) -> Iterator[Record]:
    for number in range(NUM_LISTS):
        operation = rng.choice(words.OPERATIONS)
        count = rng.choices(range(1, words.MAX_WORDS + 1), (1, 3, 4, 5))[0]
        given = words.draw_list(rng, count, is_held_out=False)
        yield Record(
            task=Task.TEXT_TO_TEXT,
            text=f"{rng.choice(words.PHRASES[operation])} {words.in_words(given)}",
            answer=words.in_words(words.carry_out(operation, given)),
            source="lists",
            key=str(number),
        )


def _looked_at(codes: Sequence[Codes], labels: Sequence[int]) -> Iterator[Record]:
    for number, (picture, label) in enumerate(zip(codes, labels, strict=True)):
        yield Record(
            task=Task.IMAGE_TO_TEXT,
            images=(picture,),
            answer=words.DIGIT_WORDS[label],
            source="digits",
            key=str(number),
        )


def _drawn(codes: Sequence[Codes], labels: Sequence[int], rng: random.Random) -> Iterator[Record]:
    for number, (picture, label) in enumerate(zip(codes, labels, strict=True)):
        name = words.DIGIT_WORDS[label] if rng.random() < 0.7 else str(label)
        yield Record(
            task=Task.TEXT_TO_IMAGE,
            text=rng.choice(words.DRAW_PROMPTS).format(name),
            target_image=picture,
            source="digits",
            key=str(number),
        )


def _edited(
    codec: ImageCodec,
    pictures: Sequence[Image.Image],
    codes: Sequence[Codes],
    rng: random.Random,
) -> Iterator[Record]:
    clean = [digits.black_and_white(picture) for picture in pictures]
    for edit, phrases in digits.EDITS.items():
        targets = encode(codec, [digits.edited(one, edit) for one in clean], digits.IMAGE_SIDE)
        for number, (source, target) in enumerate(zip(codes, targets, strict=True)):
            yield Record(
                task=Task.IMAGE_TO_IMAGE,
                text=rng.choice(phrases),
                images=(source,),
                target_image=target,
                source=edit,
                key=str(number),
            )


def _watched(codec: ImageCodec, count: int, rng: random.Random) -> Iterator[Record]:
    clips, answers = [], []
    ways = list(digits.DIRECTIONS)
    for index in range(digits.num_train()):
        plain = digits.image(index, digits.CLIP_SIDE)
        for variant in range(count):
            picture = digits.varied(plain, rng) if variant else plain
            way = ways[(index + variant) % len(ways)]
            clips.append(digits.clip(picture, way))
            answers.append(words.motion(digits.label(index), way))
    for number, (frames, answer) in enumerate(zip(clip_codes(codec, clips), answers, strict=True)):
        yield Record(
            task=Task.VIDEO_TO_TEXT, images=frames, answer=answer, source="clips", key=str(number)
        )


def _heard(spoken: Sequence[Utterance]) -> Iterator[Record]:
    for number, utterance in enumerate(spoken):
        record = Record(
            task=Task.SPEECH_TO_TEXT,
            units=utterance.units,
            answer=words.in_words(utterance.digits),
            source="flite",
            key=str(number),
        )
        yield from [record] * _HEARD[len(utterance.digits)]


def _said(spoken: Sequence[Utterance]) -> Iterator[Record]:
    for number, utterance in enumerate(spoken):
        if utterance.is_plain:
            record = Record(
                task=Task.TEXT_TO_SPEECH,
                text=words.in_words(utterance.digits),
                units=utterance.units,
                source="flite",
                key=str(number),
            )
            yield from [record] * _SAID[len(utterance.digits)]
