"""Training pairs, and how each becomes a sequence: `Record` → `Sample`.

A record holds its media as codes and its texts as strings. The sequence is the one that serving
builds for the same request (`processors.assemble`), with the answer filled in; what training adds
is decided here: which instruction, whether the condition is dropped for guidance, how long the
answer's region is, and which EOS carry a label.

Source: `training/prompting_utils.py` and `training/data.py` of AIDASLab/Dynin-Omni@d6e3ca8;
arXiv 2604.00007 Table 2 and §4.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from vllm_dynin.canvas import Parity, Task
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.processors import chat, templates
from vllm_dynin.processors.assemble import PromptAssembler
from vllm_dynin.processors.templates import DIRECTIONS, DoesNotFit, EosPolicy, Filler, Sample
from vllm_dynin.processors.text_tokenizer import TextTokenizer
from vllm_dynin.tokens import Modality
from vllm_dynin.training_ext.released_layouts import Layout, Pair, released_layout

Codes = tuple[int, ...]

# Fields a record of each direction must have, and those it may have besides.
_FIELDS: dict[Task, tuple[tuple[str, ...], tuple[str, ...]]] = {
    Task.TEXT_TO_TEXT: (("text", "answer"), ("turns", "thinking")),
    Task.IMAGE_TO_TEXT: (("images", "answer"), ("text", "turns", "thinking")),
    Task.VIDEO_TO_TEXT: (("images", "answer"), ("text", "turns", "thinking")),
    Task.SPEECH_TO_TEXT: (("units", "answer"), ("text",)),
    Task.TEXT_TO_IMAGE: (("target_image",), ("text",)),
    Task.IMAGE_TO_IMAGE: (("images", "target_image"), ("text",)),
    Task.TEXT_IMAGE_TO_TEXT_IMAGE: (("images", "target_image", "answer"), ("text",)),
    Task.TEXT_TO_SPEECH: (("text", "units"), ()),
    Task.SPEECH_TO_SPEECH: (("units", "reply_units"), ("images",)),
    Task.VIDEO_TO_SPEECH: (("images", "units"), ("text",)),
}
_CONTENT = (
    "text",
    "answer",
    "turns",
    "thinking",
    "images",
    "target_image",
    "units",
    "reply_units",
)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One training pair, media as codes without offset.

    Args:
        task: the direction.
        text: prompt, question, edit instruction or sentence to say; empty takes the direction's
            own instruction.
        answer: the text to learn.
        turns: earlier messages, `{"role": …, "content": text}`; the last user turn is `text`.
        thinking: the switch behind the question; None appends nothing.
        images: codes of each source image, or of each frame of a video, raster order.
        target_image: codes of the image to learn.
        units: speech: what is heard (s2t, s2s) or what is to be said (t2s, v2s).
        reply_units: what is to be said in a spoken answer to speech (s2s).
        source: name of the data set, for mixing and for reports.
        key: name of the record within it.

    Raises:
        ValueError: a field the direction needs is missing, or one is given that it has no use
            for.
    """

    task: Task
    text: str = ""
    answer: str | None = None
    turns: tuple[Mapping[str, str], ...] = ()
    thinking: bool | None = None
    images: tuple[Codes, ...] = ()
    target_image: Codes | None = None
    units: Codes | None = None
    reply_units: Codes | None = None
    source: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        needed, optional = _FIELDS[self.task]
        for name in _CONTENT:
            value = getattr(self, name)
            is_given = value is not None and (name == "answer" or value not in ("", ()))
            if name in needed and not is_given:
                raise ValueError(
                    f"{self.where}: a {self.task.value} record needs {name}, which is "
                    f"{value!r}; give {', '.join(needed)}"
                )
            if is_given and name not in needed and name not in optional:
                raise ValueError(
                    f"{self.where}: {name} means nothing for {self.task.value}; leave it out, or "
                    f"use another task (this one takes {', '.join((*needed, *optional))})"
                )

    @property
    def where(self) -> str:
        """Source and key, for messages."""
        return f"record {self.key or '?'} of {self.source or '?'}"


@dataclass(frozen=True, kw_only=True)
class SamplePolicy:
    """What is decided for the records of one direction.

    Args:
        eos: which EOS of the answer carry a label.
        filler: what the EOS behind the answer's ending are.
        num_targets: slots of the answer's region; a shorter answer is filled up with EOS.
        row_length: positions of the whole row instead: the region is what the prompt leaves.
        max_filler: where neither is given, EOS behind the ending, drawn up to this number.
        max_length: positions of a row at most; EOS make room for the answer, and a longer row is
            refused. None sets no limit.
        overflow: an answer too long for its region is refused, or cut (its ending stays).
        dropout: probability with which the condition's text is dropped, for guidance.
        identity: probability with which an edit becomes the source itself, without instruction.
        instructions: drawn from where the record has no text of its own (and in front of the
            sentence for t2s); empty takes the direction's list.
        text_block: tokens of the text block of t2i, i2i, t2s and v2s; None takes the one the
            checkpoint is served with.
        audio_block: tokens of the padded audio part of s2t, for released layouts only.
        layout: `serving`, or what a released stage does instead (`released_layouts`).

    Raises:
        ValueError: a number is out of range, or both lengths are given.
    """

    eos: EosPolicy = "all"
    filler: Filler = "target"
    num_targets: int | None = None
    row_length: int | None = None
    max_filler: int = 0
    max_length: int | None = None
    overflow: Literal["refuse", "cut"] = "refuse"
    dropout: float = 0.0
    identity: float = 0.0
    instructions: tuple[str, ...] = ()
    text_block: int | None = None
    audio_block: int | None = None
    layout: Layout = "serving"

    def __post_init__(self) -> None:
        for name in ("dropout", "identity"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be from 0 to 1")
        for name in ("num_targets", "row_length", "max_length", "text_block", "audio_block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1, or None")
        if self.max_filler < 0:
            raise ValueError(f"max_filler={self.max_filler} must be 0 or more")
        if self.num_targets is not None and self.row_length is not None:
            raise ValueError(
                f"num_targets={self.num_targets} and row_length={self.row_length}: each decides "
                "the length of the answer's region; give one of them"
            )


DROPOUT = 0.1
"""Share of conditions dropped in every stage (`cond_dropout_prob`)."""


def sample_policies(eos: EosPolicy = "all", dropout: float = DROPOUT) -> dict[Task, SamplePolicy]:
    """The policies of every direction with the dropout that guidance was trained with.

    Args:
        eos: of the stage: `none` in stage 1 of the paper, `all` afterwards.
        dropout: of T2I and T2S; of I2I for each of its two kinds.
    """
    policies = {task: SamplePolicy(eos=eos) for task in Task}
    for task in (Task.TEXT_TO_IMAGE, Task.TEXT_TO_SPEECH):
        policies[task] = SamplePolicy(eos=eos, dropout=dropout)
    policies[Task.IMAGE_TO_IMAGE] = SamplePolicy(eos=eos, dropout=dropout, identity=dropout)
    return policies


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleContext:
    """What records are turned into samples with.

    Args:
        config: of the model; its `vocab_size` is the row count of the table.
        tokenizer: of the model.
        policies: of at least the directions that come up.
        parity: that serving will decode with; `reference` shows padding where the original does.
        keeps_padding: batches keep hidden padding, as the released attention needs (`collate`).
    """

    config: LLaDAConfig
    tokenizer: TextTokenizer
    policies: Mapping[Task, SamplePolicy]
    parity: Parity = Parity.DEFAULT
    keeps_padding: bool = False

    @cached_property
    def assembler(self) -> PromptAssembler:
        """Builds the prompts, as serving does."""
        return PromptAssembler.of_checkpoint(self.config, self.tokenizer, parity=self.parity)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random decisions for one record.

    Args:
        instruction: where the record brings none.
        is_text_dropped: the text of the condition is left out.
        is_identity: the target is the source image, and the text is left out.
        num_filler: EOS behind the ending, where the policy leaves them open.
    """

    instruction: str
    is_text_dropped: bool = False
    is_identity: bool = False
    num_filler: int = 0


_INSTRUCTIONS: dict[Task, Sequence[str]] = {
    Task.SPEECH_TO_TEXT: chat.TRANSCRIBE_INSTRUCTIONS,
    Task.TEXT_TO_SPEECH: chat.SPEAK_INSTRUCTIONS,
}


def instructions(task: Task, policy: SamplePolicy) -> Sequence[str]:
    """What is drawn from where a record brings no text of its own."""
    return policy.instructions or _INSTRUCTIONS.get(task, (chat.DEFAULT_QUESTION,))


def draw(task: Task, policy: SamplePolicy, rng: random.Random) -> Draws:
    """Draw the decisions for one record; always as many numbers, so that streams stay in step."""
    return Draws(
        instruction=rng.choice(instructions(task, policy)),
        is_text_dropped=rng.random() < policy.dropout,
        is_identity=rng.random() < policy.identity,
        num_filler=int(rng.random() * (policy.max_filler + 1)),
    )


def make_sample(
    record: Record, context: SampleContext, rng: random.Random, draws: Draws | None = None
) -> Sample:
    """Lay out one record.

    Args:
        record: the pair.
        context: model, tokenizer and policies.
        rng: of the decisions; not used where `draws` is given.
        draws: the decisions, where they are shared by several records.

    Raises:
        DoesNotFit: a text or an answer is longer than its place; the message names the record.
        ValueError: there is no policy for the direction, or a code is none of the model's.
    """
    policy = context.policies.get(record.task)
    if policy is None:
        raise ValueError(f"{record.where}: no policy for {record.task.value} in the context")
    draws = draw(record.task, policy, rng) if draws is None else draws
    try:
        return _lay_out(record, context, policy, draws)
    except DoesNotFit as error:
        raise DoesNotFit(f"{record.where}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{record.where}: {error}") from error


def _lay_out(record: Record, context: SampleContext, policy: SamplePolicy, draws: Draws) -> Sample:
    assembler = _with_block(context.assembler, policy.text_block)
    build = released_layout(record.task, policy.layout)
    text = None
    if build is not None and not draws.is_text_dropped:
        head, target = build(_released_pair(record, assembler, policy, draws), assembler)
    else:
        head = _head(record, assembler, draws)
        target, text = _target(record, assembler, draws)
    num_targets = None
    if DIRECTIONS[record.task].output is not Modality.IMAGE:
        num_targets = _region_length(len(head), len(target), policy, draws)
    elif policy.max_length is not None and len(head) + len(target) > policy.max_length:
        raise DoesNotFit(
            f"the row takes {len(head) + len(target)} positions, and has {policy.max_length} at "
            "most; use smaller images, or raise policy.max_length"
        )
    return assembler.sample(
        head,
        target,
        num_targets=num_targets,
        text_ids=text,
        task=record.task,
        eos_policy=policy.eos,
        filler=policy.filler,
    )


def _with_block(assembler: PromptAssembler, text_block: int | None) -> PromptAssembler:
    if text_block is None:
        return assembler
    return replace(
        assembler,
        image_text_block=text_block,
        speech_text_block=text_block,
        video_text_block=text_block,
    )


def _released_pair(
    record: Record, assembler: PromptAssembler, policy: SamplePolicy, draws: Draws
) -> Pair:
    units = record.units or ()
    return Pair(
        text=record.text or draws.instruction,
        instruction=draws.instruction,
        answer=record.answer or "",
        images=record.images,
        units=units,
        thinking=bool(record.thinking),
        row_length=policy.row_length,
        text_block=assembler.speech_text_block,
        audio_block=policy.audio_block or len(units) + 3,
    )


def _region_length(num_head: int, num_answer: int, policy: SamplePolicy, draws: Draws) -> int:
    needed = num_answer + 1  # its ending
    length = needed + draws.num_filler
    if policy.num_targets is not None:
        length = policy.num_targets
    elif policy.row_length is not None:
        length = policy.row_length - num_head
    if policy.max_length is not None:
        length = min(length, policy.max_length - num_head)
    if length < 1 or (length < needed and policy.overflow == "refuse"):
        raise DoesNotFit(
            f"the answer takes {needed} slots with its ending, its region has {length}; leave the "
            "record out, make room, or set overflow to cut"
        )
    return length


def _head(record: Record, assembler: PromptAssembler, draws: Draws) -> tuple[int, ...]:
    """The conditional head of a record, as serving builds it."""
    task, text = record.task, record.text or draws.instruction
    is_empty = draws.is_text_dropped or draws.is_identity
    match task:
        case Task.TEXT_TO_IMAGE:
            return assembler.text_to_image("" if is_empty else record.text)
        case Task.IMAGE_TO_IMAGE:
            return assembler.image_to_image("" if is_empty else record.text, record.images)
        case Task.TEXT_IMAGE_TO_TEXT_IMAGE:
            return assembler.text_image_to_text_image(record.text, record.images)
        case Task.SPEECH_TO_TEXT:
            return assembler.speech_to_text(_given(record.units), text)
        case Task.TEXT_TO_SPEECH if is_empty:
            return templates.text_to_speech_head(
                (), assembler.vocabulary, text_block=assembler.speech_text_block
            )
        case Task.TEXT_TO_SPEECH:
            return assembler.text_to_speech(record.text, draws.instruction)
        case Task.SPEECH_TO_SPEECH:
            return assembler.speech_to_speech(_given(record.units), record.images)
        case Task.VIDEO_TO_SPEECH:
            return assembler.video_to_speech(text, record.images)
    return _chat_head(record, assembler, text)


def _chat_head(record: Record, assembler: PromptAssembler, text: str) -> tuple[int, ...]:
    messages: list[dict[str, Any]] = [dict(turn) for turn in record.turns]
    messages.append({"role": "user", "content": text})
    images: Sequence[Codes] = ()
    videos: Sequence[Codes] = ()
    if record.task is Task.IMAGE_TO_TEXT:
        kinds, images = ["image"] * len(record.images), record.images
    elif record.task is Task.VIDEO_TO_TEXT:
        kinds, videos = ["video"], [tuple(code for frame in record.images for code in frame)]
    else:
        kinds = []
    if kinds:
        first = next(message for message in messages if message["role"] == "user")
        media = [{"type": kind} for kind in kinds]
        first["content"] = [*media, {"type": "text", "text": first["content"]}]
    return assembler.chat(messages, images=images, videos=videos, enable_thinking=record.thinking)


def _target(
    record: Record, assembler: PromptAssembler, draws: Draws
) -> tuple[Sequence[int], Sequence[int] | None]:
    """Ids of the answer without its ending, and of the text behind an image (ti2ti)."""
    v = assembler.vocabulary
    text = None if record.answer is None else assembler.encode(record.answer)
    output = DIRECTIONS[record.task].output
    if output is Modality.TEXT:
        return _given(text), None
    if output is Modality.SPEECH:
        is_reply = record.task is Task.SPEECH_TO_SPEECH
        return v.speech_ids(_given(record.reply_units if is_reply else record.units)), None
    codes = record.images[0] if draws.is_identity else _given(record.target_image)
    return v.image_ids(codes), text


def _given(value: Sequence[int] | None) -> Sequence[int]:
    assert value is not None, "Record checks what its task needs"
    return value
