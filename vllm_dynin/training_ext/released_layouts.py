"""How the released code lays training rows out where that is not the form that is served.

Everything here is PARITY: training of our own uses the serving form in every stage. The texts are
tokenised as one string, answer included, and the target starts behind the last header of what is
left after truncation, so the newline behind the assistant header is a target, and so is the
question where the header was cut off (`templates.answer_start`).

Source: `lm_prompt`, `lm_chat_prompt`, `mmu_mult_prompt`, `v2t_prompt`, `s2t_prompt`, `t2s_prompt`
of AIDASLab/Dynin-Omni@d6e3ca8, `training/prompting_utils.py`, and the scripts that call them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from vllm_dynin.canvas import Task
from vllm_dynin.processors import chat, templates
from vllm_dynin.processors.assemble import PromptAssembler
from vllm_dynin.tokens import Vocabulary

Layout = Literal["serving", "stage1", "stage2", "stage3"]
"""The form that is served, or that of a released stage where it has another one."""

Codes = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What a released layout is made from.

    Args:
        text: question, transcription instruction, or sentence to say.
        instruction: of t2s.
        answer: the text to learn; empty for speech.
        images: frames of a video, or images.
        units: speech units.
        thinking: the question asks for a thinking part.
        row_length: positions of the row, or None.
        text_block: tokens of the text block of t2s.
        audio_block: tokens of the audio part of s2t, task token included.
    """

    text: str
    instruction: str
    answer: str = ""
    images: tuple[Codes, ...] = ()
    units: Codes = ()
    thinking: bool = False
    row_length: int | None = None
    text_block: int
    audio_block: int


Parts = tuple[Sequence[int], Sequence[int]]
"""Head and target ids, the latter without their ending."""

Build = Callable[[Pair, PromptAssembler], Parts]


def released_layout(task: Task, layout: Layout) -> Build | None:
    """How a released stage lays a direction out; None where it is the serving form."""
    return _LAYOUTS[layout].get(task)


def _dialogue(
    pair: Pair, question: str, assembler: PromptAssembler, num_media: int
) -> tuple[list[int], list[int]]:
    """BOS and the dialogue, cut to the room it has, as condition and target."""
    ids = [assembler.vocabulary.bos, *assembler.encode(question + pair.answer)]
    if pair.row_length is not None:
        ids = ids[: max(0, pair.row_length - num_media - 1)]  # one slot is EOS's
    start = templates.answer_start(ids, assembler.vocabulary)
    return ids[:start], ids[start:]


def _turn(pair: Pair) -> str:
    return chat.training_turn(pair.text, enable_thinking=pair.thinking)


def _whole_text(pair: Pair, assembler: PromptAssembler) -> Parts:
    """Stage 2: every token is a target, the user's turn too."""
    condition, target = _dialogue(pair, _turn(pair), assembler, 0)
    return (), [*condition, *target]


def _text(pair: Pair, assembler: PromptAssembler) -> Parts:
    return _dialogue(pair, _turn(pair), assembler, 0)


def _images(pair: Pair, assembler: PromptAssembler) -> Parts:
    v = assembler.vocabulary
    num_media = 1 + sum(len(codes) + 2 for codes in pair.images)
    condition, target = _dialogue(pair, chat.user_turn(pair.text), assembler, num_media)
    return templates.image_to_text_head(pair.images, _behind_bos(condition, v), v), target


def _caption(pair: Pair, assembler: PromptAssembler) -> Parts:
    """Stage 1: no question; BOS is the first target."""
    v = assembler.vocabulary
    head = templates.video_to_text_head(pair.images, (), v)
    return head, [v.bos, *assembler.encode(pair.answer)]


def _video(pair: Pair, assembler: PromptAssembler) -> Parts:
    v = assembler.vocabulary
    num_media = 3 + sum(map(len, pair.images))
    condition, target = _dialogue(pair, _turn(pair), assembler, num_media)
    return templates.video_to_text_head(pair.images, _behind_bos(condition, v), v), target


def _transcription(pair: Pair, assembler: PromptAssembler) -> Parts:
    v = assembler.vocabulary
    question = chat.user_turn(pair.text)
    condition, target = _dialogue(pair, question, assembler, pair.audio_block)
    head = templates.speech_to_text_training_head(
        pair.units, _behind_bos(condition, v), v, audio_block=pair.audio_block
    )
    return head, target


def _behind_bos(condition: Sequence[int], vocabulary: Vocabulary) -> Sequence[int]:
    if not condition:
        raise ValueError(
            "the row has no room for the header of a turn; give it a larger row_length"
        )
    assert condition[0] == vocabulary.bos
    return condition[1:]


def _plain_speech(pair: Pair, assembler: PromptAssembler) -> Parts:
    """Stage 1: sentence, newline, instruction, without a turn around them."""
    v = assembler.vocabulary
    head = templates.text_to_speech_head(
        assembler.encode(f"{pair.text}\n{pair.instruction}"),
        v,
        text_block=pair.text_block,
        overflow="cut",
    )
    return head, v.speech_ids(pair.units)


_UNDERSTANDING: dict[Task, Build] = {
    Task.IMAGE_TO_TEXT: _images,
    Task.VIDEO_TO_TEXT: _video,
    Task.SPEECH_TO_TEXT: _transcription,
}
_LAYOUTS: dict[Layout, dict[Task, Build]] = {
    "serving": {},
    "stage1": {
        Task.VIDEO_TO_TEXT: _caption,
        Task.SPEECH_TO_TEXT: _transcription,
        Task.TEXT_TO_SPEECH: _plain_speech,
    },
    "stage2": {**_UNDERSTANDING, Task.TEXT_TO_TEXT: _whole_text},
    "stage3": {**_UNDERSTANDING, Task.TEXT_TO_TEXT: _text},
}
