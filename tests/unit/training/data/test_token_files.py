"""Token files: what is written comes back, record by record."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.data.token_files import (
    TokenIndex,
    TokenPart,
    TokenTable,
    from_json,
    part_name,
    to_json,
    write_part,
)
from vllm_dynin.training_ext.records import Record

texts = st.text(min_size=1, max_size=30)
codes = st.lists(st.integers(0, 8191), min_size=1, max_size=20).map(tuple)
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts}),
    max_size=3,
).map(tuple)
common = {"source": st.just("s"), "key": texts}
records = st.one_of(
    st.builds(
        Record,
        task=st.just(Task.TEXT_TO_TEXT),
        text=texts,
        answer=texts,
        turns=turns,
        thinking=st.sampled_from([None, True, False]),
        **common,
    ),
    st.builds(
        Record,
        task=st.sampled_from([Task.IMAGE_TO_TEXT, Task.VIDEO_TO_TEXT]),
        text=st.one_of(st.just(""), texts),
        answer=texts,
        images=st.lists(codes, min_size=1, max_size=4).map(tuple),
        **common,
    ),
    st.builds(
        Record,
        task=st.just(Task.IMAGE_TO_IMAGE),
        text=texts,
        images=codes.map(lambda image: (image,)),
        target_image=codes,
        **common,
    ),
    st.builds(Record, task=st.just(Task.TEXT_TO_SPEECH), text=texts, units=codes, **common),
    st.builds(Record, task=st.just(Task.SPEECH_TO_TEXT), answer=texts, units=codes, **common),
    st.builds(
        Record, task=st.just(Task.SPEECH_TO_SPEECH), units=codes, reply_units=codes, **common
    ),
)


@settings(max_examples=30, deadline=None)
@given(written=st.lists(records, max_size=8))
def test_records_come_back(written: list[Record], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "tokens.safetensors"
    write_part(path, written, {"note": "ö"})
    part = TokenPart(path)
    assert len(part) == len(written)
    assert [part[index] for index in reversed(range(len(part)))] == written[::-1]
    assert part.metadata["note"] == "ö"
    assert sum(part.count().values()) == len(written)
    for task in Task:
        places = [index for index, record in enumerate(written) if record.task is task]
        assert part.indices(task).tolist() == places


@settings(max_examples=30, deadline=None)
@given(record=records)
def test_json_keeps_a_record(record: Record) -> None:
    assert from_json(to_json(record)) == record


def folder_of(tmp_path: Path, *parts: list[Record]) -> Path:
    for number, records in enumerate(parts):
        write_part(tmp_path / part_name(number, len(parts)), records, {})
    counts = tuple(
        TokenPart(tmp_path / part_name(number, len(parts))).count() for number in range(len(parts))
    )
    TokenIndex(identity={"a": 1}, num_parts=len(parts), num_records=counts).write(tmp_path)
    return tmp_path


def text(key: str) -> Record:
    return Record(task=Task.TEXT_TO_TEXT, text="q", answer="a", key=key)


def heard(key: str) -> Record:
    return Record(task=Task.SPEECH_TO_TEXT, answer=f"word {key}", units=(4, 2), key=key)


def test_a_folder_of_several_directions(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path, [text("0"), heard("1"), text("2")], [], [heard("3"), heard("4")], [text("5")]
    )
    table = TokenTable(folder, Task.TEXT_TO_TEXT)
    assert [table[index].key for index in range(len(table))] == ["0", "2", "5"]
    assert table[1].source == folder.name
    speech = TokenTable(folder, Task.SPEECH_TO_TEXT, "spoken")
    assert [speech[index].key for index in range(len(speech))] == ["1", "3", "4"]
    assert speech[2].source == "spoken"
    # Nothing was written for text to speech, so the pairs are turned round.
    turned = TokenTable(folder, Task.TEXT_TO_SPEECH)
    assert [turned[index].text for index in range(3)] == ["word 1", "word 3", "word 4"]
    with pytest.raises(IndexError):
        turned[3]
    with pytest.raises(ValueError, match="no records of t2i; it has s2t, t2t"):
        TokenTable(folder, Task.TEXT_TO_IMAGE)


def test_a_folder_that_is_not_finished(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [text("0")], [text("1")])
    TokenIndex(identity={}, num_parts=2).write(folder)
    (folder / part_name(1, 2)).unlink()
    with pytest.raises(ValueError, match="1 of 2 parts are there; run the same"):
        TokenTable(folder, Task.TEXT_TO_TEXT)


def test_what_is_no_token_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="not a token file"):
        TokenPart(path)
    with pytest.raises(ValueError, match="no folder of tokens"):
        TokenIndex.read(tmp_path)
    (tmp_path / "tokens.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="format 'other'"):
        TokenIndex.read(tmp_path)


def test_many_parts_keep_few_files_open(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, *([text(str(number))] for number in range(200)))
    table = TokenTable(folder, Task.TEXT_TO_TEXT)
    assert [table[index].key for index in range(200)] == [str(index) for index in range(200)]
    assert len(table._open) <= 128
