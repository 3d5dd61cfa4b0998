"""Token files: records with their media as codes, read one by one without loading the file.

One safetensors file holds a part of a set: the records' texts as JSON, all codes one behind the
other, and where each record begins in both. It is a single file so that one rename finishes it; it
is safetensors so that a record is read by its offsets from a memory map, with the libraries that
serving needs anyway, and so that no reader can be made to run code. (Parquet is read by row groups:
a random record costs its whole group.)
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.records import Record

FORMAT = "vllm-dynin tokens 1"
INDEX = "tokens.json"
_OPEN_FILES = 128
_MEDIA = ("target_image", "units", "reply_units")
_TEXTS = ("text", "answer", "turns", "thinking", "source", "key")


def to_json(record: Record) -> dict[str, Any]:
    """A record as JSON values, its media as lists of codes; empty fields are left out."""
    out: dict[str, Any] = {"task": record.task.value}
    for name in _TEXTS:
        if getattr(record, name) not in (None, "", ()) or name == "answer":
            out[name] = getattr(record, name)
    out |= {"images": [list(codes) for codes in record.images]} if record.images else {}
    for name in _MEDIA:
        if getattr(record, name) is not None:
            out[name] = list(getattr(record, name))
    return {name: value for name, value in out.items() if value is not None}


def from_json(fields: Mapping[str, Any]) -> Record:
    """The record of `to_json`.

    Raises:
        ValueError: a field is unknown, or missing for the direction.
    """
    known = dict(fields)
    known["task"] = Task(known["task"])
    known["turns"] = tuple(known.get("turns", ()))
    known["images"] = tuple(map(tuple, known.get("images", ())))
    for name in _MEDIA:
        if known.get(name) is not None:
            known[name] = tuple(known[name])
    try:
        return Record(**known)
    except TypeError as error:
        raise ValueError(f"not a record: {error}") from error


def write_part(path: Path, records: Sequence[Record], metadata: Mapping[str, str]) -> None:
    """Write one file, whole or not at all.

    Args:
        path: of the file; an existing one is replaced.
        records: of the part, perhaps none.
        metadata: more fields for the header.
    """
    texts, codes, text_offsets, code_offsets = bytearray(), [], [0], [0]
    for record in records:
        fields = to_json(record)
        media = [*fields.pop("images", [])]
        lengths: dict[str, Any] = {"images": [len(image) for image in media]} if media else {}
        for name in _MEDIA:
            if name in fields:
                media.append(fields.pop(name))
                lengths[name] = len(media[-1])
        texts += json.dumps({**fields, "lengths": lengths}, ensure_ascii=False).encode()
        codes += [code for medium in media for code in medium]
        text_offsets.append(len(texts))
        code_offsets.append(len(codes))
    directions = sorted({record.task.value for record in records})
    tensors: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
        "text": np.frombuffer(bytes(texts), np.uint8),
        "text_offsets": np.asarray(text_offsets, np.int64),
        "codes": np.asarray(codes, np.uint16),
        "code_offsets": np.asarray(code_offsets, np.int64),
        "direction": np.asarray([directions.index(r.task.value) for r in records], np.uint8),
    }
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    header = {"format": FORMAT, "directions": " ".join(directions), **metadata}
    with open(temporary, "wb") as stream:  # save_file would make it readable for its owner only
        stream.write(save(tensors, header))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


class TokenPart:
    """One file of tokens.

    Args:
        path: of the file.

    Raises:
        ValueError: it is no token file.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, framework="np")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: not a token file: {error}") from error
        self.metadata: dict[str, str] = self._file.metadata() or {}
        if self.metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path}: format {self.metadata.get('format')!r}, not {FORMAT!r}; write it anew "
                "with vllm-dynin tokenize"
            )
        self._texts, self._codes = (self._file.get_slice(name) for name in ("text", "codes"))
        names = ("text_offsets", "code_offsets")
        self._text_offsets, self._code_offsets = (self._file.get_tensor(n).tolist() for n in names)

    def __len__(self) -> int:
        return len(self._text_offsets) - 1

    def indices(self, task: Task) -> np.ndarray[Any, np.dtype[np.int64]]:
        """int64: where the records of a direction are, ascending."""
        directions = self.metadata["directions"].split()
        if task.value not in directions:
            return np.zeros(0, np.int64)
        is_wanted = self._file.get_tensor("direction") == directions.index(task.value)
        return np.flatnonzero(is_wanted).astype(np.int64)

    def count(self) -> dict[str, int]:
        """Records of each direction."""
        directions = self.metadata["directions"].split()
        numbers = np.bincount(self._file.get_tensor("direction"), minlength=len(directions))
        return dict(zip(directions, numbers.tolist(), strict=True))

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, stop = self._text_offsets[index : index + 2]
        fields = json.loads(self._texts[start:stop].tobytes())
        start, stop = self._code_offsets[index : index + 2]
        # safetensors refuses an empty slice.
        codes = self._codes[start:stop].tolist() if stop > start else []
        lengths: dict[str, Any] = fields.pop("lengths")
        fields["images"] = [_take(codes, length) for length in lengths.get("images", ())]
        for name in _MEDIA:
            if name in lengths:
                fields[name] = _take(codes, lengths[name])
        return from_json(fields)


def _take(codes: list[int], length: int) -> list[int]:
    taken = codes[:length]
    del codes[:length]
    return taken


@dataclass(frozen=True, kw_only=True)
class TokenIndex:
    """What `vllm-dynin tokenize` says about the folder it writes.

    Args:
        identity: data, adapter, sizes and codecs, as JSON values: equal for equal tokens.
        num_parts: files that make up the set.
        num_records: records of each direction in each of them; empty while it is being written.
    """

    identity: Mapping[str, Any]
    num_parts: int
    num_records: tuple[Mapping[str, int], ...] = ()

    def write(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        temporary = folder / f"{INDEX}.{os.getpid()}.tmp"
        fields = {"format": FORMAT, "identity": dict(self.identity), "num_parts": self.num_parts}
        fields["num_records"] = list(self.num_records)
        temporary.write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n")
        temporary.replace(folder / INDEX)

    @classmethod
    def read(cls, folder: Path) -> TokenIndex:
        """Read it back.

        Raises:
            ValueError: there is none, or of another format.
        """
        try:
            fields = json.loads((folder / INDEX).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder}: no folder of tokens: {error}") from error
        if fields.get("format") != FORMAT:
            raise ValueError(f"{folder}: format {fields.get('format')!r}, not {FORMAT!r}")
        return cls(
            identity=fields["identity"],
            num_parts=fields["num_parts"],
            num_records=tuple(fields["num_records"]),
        )


def part_name(number: int, num_parts: int) -> str:
    """File of a part, counted from 0."""
    return f"tokens-{number:05d}-of-{num_parts:05d}.safetensors"


class TokenTable:
    """The records of one direction in a folder that `vllm-dynin tokenize` wrote.

    Args:
        folder: with its index and all of its parts.
        task: the direction. Pairs of speech and transcript written for the other speech direction
            are turned round where there are none for this one.
        name: of the set, for reports; by default that of the folder.

    Raises:
        ValueError: it is no such folder, not finished, or has nothing of the direction.
    """

    def __init__(self, folder: Path, task: Task, name: str | None = None) -> None:
        self.name = folder.name if name is None else name
        self._folder, self._task = folder, task
        self.index = TokenIndex.read(folder)
        if len(self.index.num_records) != self.index.num_parts:
            present = len(list(folder.glob("tokens-*.safetensors")))
            raise ValueError(
                f"{folder}: {present} of {self.index.num_parts} parts are there; run the same "
                "vllm-dynin tokenize again to finish it"
            )
        counts = self.index.num_records
        held = {name for part in counts for name, number in part.items() if number}
        stored = task if task.value in held else _TURNED.get(task, task)
        if stored.value not in held:
            raise ValueError(
                f"{folder} has no records of {task.value}; it has {', '.join(sorted(held))}"
            )
        self._stops = np.cumsum([part.get(stored.value, 0) for part in counts])
        # Where directions are mixed, the places of this one: 8 bytes a record.
        self._places: list[np.ndarray[Any, np.dtype[np.int64]]] | None = None
        self._open: OrderedDict[int, TokenPart] = OrderedDict()
        if len(held) > 1:
            self._places = [self._part(n).indices(stored) for n in range(self.index.num_parts)]

    def __len__(self) -> int:
        return int(self._stops[-1])

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._stops, index, side="right"))
        place = index - (int(self._stops[number - 1]) if number else 0)
        if self._places is not None:
            place = int(self._places[number][place])
        return swap_speech(replace(self._part(number)[place], source=self.name), self._task)

    def _part(self, number: int) -> TokenPart:
        if number not in self._open:
            path = self._folder / part_name(number, self.index.num_parts)
            self._open[number] = TokenPart(path)
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]


_TURNED = {Task.TEXT_TO_SPEECH: Task.SPEECH_TO_TEXT, Task.SPEECH_TO_TEXT: Task.TEXT_TO_SPEECH}


def swap_speech(record: Record, task: Task) -> Record:
    """A pair of speech and transcript for the direction wanted; others are returned as they are.

    Raises:
        ValueError: the record is for another direction, and no such pair.
    """
    if record.task is task:
        return record
    if record.task is Task.SPEECH_TO_TEXT and task is Task.TEXT_TO_SPEECH:
        return replace(record, task=task, text=record.answer or "", answer=None)
    if record.task is Task.TEXT_TO_SPEECH and task is Task.SPEECH_TO_TEXT:
        return replace(record, task=task, text="", answer=record.text)
    raise ValueError(
        f"{record.where} is for {record.task.value}, its source for {task.value}; only speech "
        "and transcript can be used both ways"
    )
