"""Adapters: what the columns of common data sets mean. A row in, its training pairs out.

An adapter is a function of the row and the direction it is wanted for. It takes the first of
several column names that is there; `columns` of a source renames others to one of these. One row
can hold several pairs: the questions of a conversation, an edit and its inverse.

Source: the loaders of AIDASLab/Dynin-Omni@d6e3ca8, `training/data.py`, for what each format holds.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.data.bad import BadKind, BadSample
from vllm_dynin.training_ext.data.raw import RawRecord, Turn, Video
from vllm_dynin.training_ext.data.rows import Medium, Row
from vllm_dynin.training_ext.data.thoughts import answers_in_columns, with_thinking

Adapter = Callable[[Row, Task], list[RawRecord]]

_TARGET = ("target_image", "target", "edited_image", "output_image")
_SOURCE = ("image", "source_image", "source", "input_image")
_IMAGE = ("image", "image_path", "jpg", "jpeg", "png", "webp")
_VIDEO = ("video", "video_path", "frames", "path", "mp4", "webm")
_AUDIO = ("audio", "speech", "audio_path", "path", "wav", "flac", "mp3", "ogg", "opus")
_TRANSCRIPT = ("text", "sentence", "transcription", "transcript", "txt")
_QUESTION = ("prompt", "question", "instruction", "problem", "query", "text")
_ANSWER = ("answer", "response", "output", "solution", "completion")
_TURNS = ("conversations", "messages", "turns")
_CAPTION = ("caption", "text", "name", "txt")
_PROMPT = ("prompt", "query", "caption", "text", "txt")


def record(row: Row, task: Task) -> list[RawRecord]:
    """Our own schema: the fields of `records.Record`, with media as files (docs/training-data.md).

    `task` in a row wins over the one the source is read for.
    """
    fields = row.fields
    if fields.get("task") is not None:
        try:
            task = Task(fields["task"])
        except ValueError as error:
            raise BadSample(BadKind.FIELDS, str(error)) from error
    images = fields.get("images")
    if images is None:
        images = [] if fields.get("image") is None else [fields["image"]]
    if not isinstance(images, Sequence) or isinstance(images, str):
        raise BadSample(BadKind.FIELDS, "images is not a list; for a single one use image")
    return [
        RawRecord(
            task=task,
            key=row.key,
            text=_optional_text(row, "text") or "",
            answer=_optional_text(row, "answer"),
            turns=_turns(fields["turns"]) if fields.get("turns") else (),
            thinking=_thinking(row),
            images=tuple(row.medium(image) for image in images),
            video=_video(row, fields["video"]) if fields.get("video") is not None else None,
            target_image=_optional_medium(row, "target_image"),
            speech=_optional_medium(row, "speech"),
            span=_span(row),
            reply_speech=_optional_medium(row, "reply_speech"),
        )
    ]


def pair(row: Row, task: Task) -> list[RawRecord]:
    """A question and its answer in two columns; `input` of instruction sets is put below."""
    return [RawRecord(task=task, key=row.key, text=_question(row), answer=_text(row, _ANSWER))]


def _question(row: Row) -> str:
    question, more = _text(row, _QUESTION), row.fields.get("input")
    return f"{question}\n{more}" if isinstance(more, str) and more.strip() else question


def reasoning(row: Row, task: Task, thinking: bool = True) -> list[RawRecord]:
    """A question with a whole trace, asked for with thinking; or with its bare final answer.

    The trace is looked for in `generations` (right ones first), in columns of its own, in the
    answer, and in `messages`; see `thoughts.answers_in_columns`.

    Raises:
        BadSample: there is no thought where one is asked for: filtered, not damaged.
    """
    is_asked = any(isinstance(row.fields.get(name), str) for name in _QUESTION)
    for answer in answers_in_columns(row.fields, thinking) if is_asked else ():
        made = RawRecord(task=task, key=row.key, text=_question(row), answer=answer)
        with contextlib.suppress(BadSample):
            return with_thinking([made], thinking)
    if any(row.fields.get(name) is not None for name in _TURNS):
        return with_thinking(dialogue(row, task), thinking)
    if isinstance(row.fields.get("input"), Sequence):  # Llama-Nemotron: the turns so far
        return with_thinking(_continued(row, task), thinking)
    raise BadSample(
        BadKind.NO_THOUGHT,
        f"no {'whole thought' if thinking else 'final answer'} in any column; {_columns_of(row)}",
    )


def _continued(row: Row, task: Task) -> list[RawRecord]:
    """The turns of `input`, or its text, and the answer in `output`."""
    given = row.fields["input"]
    turns = ({"role": "user", "content": given},) if isinstance(given, str) else _turns(given)
    answer = {"role": "assistant", "content": _text(row, _ANSWER)}
    fields = {"messages": [*turns, answer]}
    return dialogue(Row(key=row.key, fields=fields, root=row.root), task)[-1:]


def conversations(row: Row, task: Task) -> list[RawRecord]:
    """Turns of `conversations`, `messages` or `turns`: every question with the answer that follows.

    Each is a pair of its own without the turns before it, as the original trains them, with all
    images or the video of the row. `<image>` and `<video>` in the text only say where a medium
    stood; there must be as many as there are images.
    """
    return [replace(made, turns=()) for made in dialogue(row, task)]


def dialogue(row: Row, task: Task) -> list[RawRecord]:
    """As `conversations`, and each pair keeps the turns before it."""
    turns = _turns(row.fields[_first(row, _TURNS)])
    media = _conversation_media(row, task)
    if task is Task.IMAGE_TO_TEXT:
        num_marks = sum(turn["content"].count("<image>") for turn in turns)
        if num_marks not in (0, len(media["images"])):
            raise BadSample(
                BadKind.FIELDS,
                f"{num_marks} <image> marks in the turns for {len(media['images'])} images",
            )
    turns = tuple({**turn, "content": _without_marks(turn["content"])} for turn in turns)
    start = int(bool(turns) and turns[0]["role"] == "system")
    roles = [turn["role"] for turn in turns[start:]]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise BadSample(
            BadKind.FIELDS,
            f"the turns are {', '.join(roles) or 'none'}; user and assistant must take turns",
        )
    return [
        RawRecord(
            task=task,
            key=f"{row.key}#{(place - start) // 2}",
            text=turns[place]["content"],
            answer=turns[place + 1]["content"],
            turns=turns[:place],
            **media,
        )
        for place in range(start, len(turns), 2)
    ]


def image_question(row: Row, task: Task) -> list[RawRecord]:
    """An image, a question (or none: a caption) and the answer."""
    name = next((name for name in _QUESTION if isinstance(row.fields.get(name), str)), None)
    answer = _text(row, (*_ANSWER, "caption", "txt"))
    question = "" if name is None else _text(row, (name,))
    image = row.medium(row.fields[_first(row, _IMAGE)])
    return [RawRecord(task=task, key=row.key, text=question, answer=answer, images=(image,))]


def video(row: Row, task: Task) -> list[RawRecord]:
    """A clip, or a folder or list of frames, with a caption, or with a question and an answer."""
    clip = _video(row, row.fields[_first(row, _VIDEO)])
    if isinstance(row.fields.get("question"), str):
        question, answer = _text(row, ("question",)), _text(row, _ANSWER)
    else:
        question, answer = "", _text(row, _CAPTION)
    return [RawRecord(task=task, key=row.key, text=question, answer=answer, video=clip)]


def prompt_image(row: Row, task: Task) -> list[RawRecord]:
    """A prompt and its image."""
    image = row.medium(row.fields[_first(row, _IMAGE)])
    return [RawRecord(task=task, key=row.key, text=_text(row, _PROMPT), target_image=image)]


def preference(row: Row, task: Task) -> list[RawRecord]:
    """A prompt with two images and who won, as in Pick-a-Pic; of a tie the first image is taken."""
    first, second = row.fields.get("label_0"), row.fields.get("label_1")
    if not isinstance(first, int | float) or not isinstance(second, int | float):
        raise BadSample(BadKind.FIELDS, f"label_0={first!r}, label_1={second!r} are not numbers")
    name = "jpg_1" if second > first else "jpg_0"
    image = row.medium(row.fields[_first(row, (name,))])
    return [RawRecord(task=task, key=row.key, text=_text(row, _PROMPT), target_image=image)]


def edit(row: Row, task: Task) -> list[RawRecord]:
    """Source, target and instruction; with an inverse instruction also the way back."""
    source = row.medium(row.fields[_first(row, _SOURCE)])
    target = row.medium(row.fields[_first(row, _TARGET)])
    words = _text(row, ("edit", "edit_prompt", "instruction", "prompt", "text", "txt"))
    there = RawRecord(
        task=task, key=f"{row.key}#0", text=words, images=(source,), target_image=target
    )
    back = next(
        (row.fields[n] for n in ("inverse", "inverse_edit", "inverse_prompt") if row.fields.get(n)),
        None,
    )
    if not isinstance(back, str) or not back.strip():
        return [there]
    return [
        there,
        RawRecord(task=task, key=f"{row.key}#1", text=back, images=(target,), target_image=source),
    ]


def speech(row: Row, task: Task) -> list[RawRecord]:
    """A recording and its transcript, for either speech direction.

    `start` and `end`, in seconds, cut the recording. Punctuation tags of GigaSpeech become
    characters; a segment of noise or music is a bad sample. GigaSpeech's `begin_time` and
    `end_time` are not looked at: as `datasets` has it, its recordings are cut already.
    """
    return [_speech_pair(row, task, _punctuated(_text(row, _TRANSCRIPT)))]


def common_voice(row: Row, task: Task) -> list[RawRecord]:
    """As `speech`, with the transcript in capitals, as the original trains Common Voice."""
    return [_speech_pair(row, task, _text(row, ("sentence", *_TRANSCRIPT)).upper())]


ADAPTERS: dict[str, Adapter] = {
    "record": record,
    "pair": pair,
    "reasoning": reasoning,
    "conversations": conversations,
    "dialogue": dialogue,
    "image-question": image_question,
    "video": video,
    "prompt-image": prompt_image,
    "preference": preference,
    "edit": edit,
    "speech": speech,
    "common-voice": common_voice,
}
"""Name → adapter, as sources and `vllm-dynin tokenize --adapter` take it."""


def find_adapter(
    name: str, columns: Mapping[str, str] | None = None, *, thinking: bool | None = None
) -> Adapter:
    """An adapter by name, reading some columns under another name.

    Args:
        name: of `ADAPTERS`.
        columns: name the adapter knows → column of the data.
        thinking: the switch of text answers: a thought is demanded, or taken out; None leaves the
            adapter's own.

    Raises:
        ValueError: there is no such adapter.
    """
    if name not in ADAPTERS:
        raise ValueError(f"adapter {name!r} is unknown; known are {', '.join(ADAPTERS)}")
    adapter = _switched(ADAPTERS[name], thinking)
    if not columns:
        return adapter

    def renamed(row: Row, task: Task) -> list[RawRecord]:
        missing = [column for column in columns.values() if column not in row.fields]
        if missing:
            raise BadSample(BadKind.FIELDS, f"no column {missing[0]!r}; {_columns_of(row)}")
        # What an adapter would look at first must not hide the column that was named.
        taken = {known: row.fields[column] for known, column in columns.items()}
        others = {k: v for k, v in row.fields.items() if k not in columns.values()}
        return adapter(Row(key=row.key, fields={**others, **taken}, root=row.root), task)

    return renamed


def _switched(adapter: Adapter, thinking: bool | None) -> Adapter:
    if thinking is None:
        return adapter
    if adapter is reasoning:
        return partial(reasoning, thinking=thinking)
    return lambda row, task: with_thinking(adapter(row, task), thinking)


_TAGS = {
    " <COMMA>": ",",
    " <PERIOD>": ".",
    " <QUESTIONMARK>": "?",
    " <EXCLAMATIONPOINT>": "!",
}
_NO_SPEECH = re.compile(r"<(SIL|MUSIC|NOISE|OTHER)>")


def _punctuated(text: str) -> str:
    if found := _NO_SPEECH.search(text):
        raise BadSample(BadKind.NO_SPEECH, f"the transcript has {found[0]}")
    for tag, character in _TAGS.items():
        text = text.replace(tag, character).replace(tag.strip(), character)
    return text


def _speech_pair(row: Row, task: Task, text: str) -> RawRecord:
    sound = row.medium(row.fields[_first(row, _AUDIO)])
    if task is Task.TEXT_TO_SPEECH:
        return RawRecord(task=task, key=row.key, text=text, speech=sound, span=_span(row))
    return RawRecord(task=task, key=row.key, answer=text, speech=sound, span=_span(row))


def _span(row: Row) -> tuple[float, float] | None:
    start, end = row.fields.get("start"), row.fields.get("end")
    if start is None and end is None:
        return None
    if not isinstance(start, int | float) or not isinstance(end, int | float):
        raise BadSample(BadKind.FIELDS, f"start={start!r} and end={end!r}: give both in seconds")
    if not 0 <= start < end:
        raise BadSample(BadKind.FIELDS, f"start={start} and end={end}: 0 ≤ start < end")
    return float(start), float(end)


def _conversation_media(row: Row, task: Task) -> dict[str, Any]:
    if task is Task.VIDEO_TO_TEXT:
        return {"video": _video(row, row.fields[_first(row, _VIDEO)])}
    if task is Task.IMAGE_TO_TEXT:
        value = row.fields[_first(row, ("images", *_IMAGE))]
        several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        if several and not all(isinstance(item, int) for item in value):
            return {"images": tuple(row.medium(item) for item in value)}
        return {"images": (row.medium(value),)}
    return {}


_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def _turns(value: Any) -> tuple[Turn, ...]:
    """Turns as `from`/`value` or `role`/`content`, by one pair of names."""
    turns = []
    for turn in value if isinstance(value, Sequence) and not isinstance(value, str) else [None]:
        turn = turn if isinstance(turn, Mapping) else {}
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise BadSample(
                BadKind.FIELDS, "a turn has no role and content (or from and value) that are text"
            )
        turns.append({"role": _ROLES.get(role, role), "content": content})
    return tuple(turns)


def _without_marks(text: str) -> str:
    return re.sub(r"<(?:image|video)>\n?", "", text).strip()


def _video(row: Row, value: Any) -> Video:
    """A clip, or its frames where the field is a list."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(row.medium(frame) for frame in value)
    medium = row.medium(value)
    if isinstance(medium, tuple):
        raise BadSample(BadKind.FIELDS, "the codes of a video are a list for each frame")
    return medium


def _first(row: Row, names: Sequence[str]) -> str:
    for name in names:
        if row.fields.get(name) is not None:
            return name
    raise BadSample(
        BadKind.FIELDS, f"none of the columns {', '.join(names)} is there; {_columns_of(row)}"
    )


def _columns_of(row: Row) -> str:
    return f"the row has {', '.join(row.fields) or 'none'}"


def _text(row: Row, names: Sequence[str]) -> str:
    name = _first(row, names)
    value = row.fields[name]
    if not isinstance(value, str):
        raise BadSample(BadKind.FIELDS, f"column {name} is {type(value).__name__}, not text")
    if not value.strip():
        raise BadSample(BadKind.FIELDS, f"column {name} is empty")
    return value


def _optional_text(row: Row, name: str) -> str | None:
    value = row.fields.get(name)
    if value is not None and not isinstance(value, str):
        raise BadSample(BadKind.FIELDS, f"{name} is {type(value).__name__}, not text")
    return value


def _thinking(row: Row) -> bool | None:
    value = row.fields.get("thinking")
    if value is not None and not isinstance(value, bool):
        raise BadSample(BadKind.FIELDS, f"thinking={value!r}; true, false or nothing")
    return value


def _optional_medium(row: Row, name: str) -> Medium | None:
    value = row.fields.get(name)
    return None if value is None else row.medium(value)
