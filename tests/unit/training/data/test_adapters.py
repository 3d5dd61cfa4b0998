"""What the columns of common data sets mean, and which rows are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.data.adapters import find_adapter
from vllm_dynin.training_ext.data.bad import BadKind, BadSample
from vllm_dynin.training_ext.data.raw import RawRecord
from vllm_dynin.training_ext.data.rows import Row

T2T, MMU, V2T = Task.TEXT_TO_TEXT, Task.IMAGE_TO_TEXT, Task.VIDEO_TO_TEXT
S2T, T2S = Task.SPEECH_TO_TEXT, Task.TEXT_TO_SPEECH
T2I, I2I = Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE
ROOT = Path("/data/set")


def adapt(
    name: str, task: Task, fields: dict[str, Any], columns: dict[str, str] | None = None
) -> list[RawRecord]:
    return find_adapter(name, columns)(Row(key="k", fields=fields, root=ROOT), task)


def one(name: str, task: Task, fields: dict[str, Any]) -> RawRecord:
    (made,) = adapt(name, task, fields)
    return made


def turns(*texts: str) -> list[dict[str, str]]:
    return [
        {"from": "gpt" if index % 2 else "human", "value": text} for index, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "q", "answer": "a"},
        {"instruction": "q", "output": "a", "input": ""},
        {"problem": "q", "solution": "a", "level": 3},
        {"question": "q", "response": "a"},
    ],
)
def test_pairs(fields: dict[str, Any]) -> None:
    assert one("pair", T2T, fields) == RawRecord(task=T2T, key="k", text="q", answer="a")


def test_the_input_of_an_instruction_is_part_of_the_question() -> None:
    made = one("pair", T2T, {"instruction": "Add.", "input": "1 2", "output": "3"})
    assert made.text == "Add.\n1 2"


@pytest.mark.parametrize("spelling", ["from/value", "role/content"])
def test_conversations(spelling: str) -> None:
    messages = turns("q1", "a1", "q2", "a2")
    if spelling == "role/content":
        roles = {"human": "user", "gpt": "assistant"}
        messages = [{"role": roles[m["from"]], "content": m["value"]} for m in messages]
    first, second = adapt("conversations", T2T, {"conversations": messages})
    assert first == RawRecord(task=T2T, key="k#0", text="q1", answer="a1")
    assert second == RawRecord(task=T2T, key="k#1", text="q2", answer="a2")


def test_a_dialogue_keeps_its_history() -> None:
    system = {"role": "system", "content": "Be brief."}
    messages = [system, *turns("q1", "a1", "q2", "a2")]
    first, second = adapt("dialogue", T2T, {"messages": messages})
    assert (first.key, first.turns) == ("k#0", (system,))
    assert (second.key, second.text, second.answer) == ("k#1", "q2", "a2")
    assert [turn["content"] for turn in second.turns] == ["Be brief.", "q1", "a1"]
    assert [turn["role"] for turn in second.turns] == ["system", "user", "assistant"]


def test_conversations_about_images() -> None:
    fields = {
        "images": ["a.png", {"bytes": b"png", "path": None}],
        "conversations": turns("<image>\n<image>\nWhich?", "the first", "And now?", "the second"),
    }
    first, second = adapt("conversations", MMU, fields)
    assert (first.text, first.answer) == ("Which?", "the first")
    assert first.images == second.images == (ROOT / "a.png", b"png")
    assert second.text == "And now?"


def test_marks_and_images_must_agree() -> None:
    """The original drops images that do not fit and leaves their marks (its defect 19)."""
    fields = {"image": "a.png", "conversations": turns("<image><image> Which?", "the first")}
    with pytest.raises(BadSample, match="2 <image> marks in the turns for 1 images"):
        adapt("conversations", MMU, fields)


def test_conversations_about_a_video() -> None:
    fields = {"video": "v.mp4", "conversations": turns("<image>\nWhat is it?", "a cat")}
    made = one("conversations", V2T, fields)
    assert (made.text, made.video, made.images) == ("What is it?", ROOT / "v.mp4", ())


def test_images_with_questions_and_captions() -> None:
    asked = one("image-question", MMU, {"image": "a.png", "question": "q", "answer": "a"})
    assert (asked.text, asked.answer, asked.images) == ("q", "a", (ROOT / "a.png",))
    captioned = one("image-question", MMU, {"jpg": b"bytes", "txt": "a cat"})
    assert (captioned.text, captioned.answer, captioned.images) == ("", "a cat", (b"bytes",))


def test_videos() -> None:
    caption = one("video", V2T, {"video_path": "v.mp4", "caption": "a cat"})
    assert (caption.text, caption.answer, caption.video) == ("", "a cat", ROOT / "v.mp4")
    asked = one("video", V2T, {"frames": ["0.png", "1.png"], "question": "q", "answer": "a"})
    assert (asked.text, asked.answer) == ("q", "a")
    assert asked.video == (ROOT / "0.png", ROOT / "1.png")


def test_prompts_and_images() -> None:
    for fields in ({"prompt": "p", "image_path": "a.png"}, {"query": "p", "image": "a.png"}):
        made = one("prompt-image", T2I, fields)
        assert made == RawRecord(task=T2I, key="k", text="p", target_image=ROOT / "a.png")


@pytest.mark.parametrize(("labels", "winner"), [((1, 0), b"0"), ((0, 1), b"1"), ((0.5, 0.5), b"0")])
def test_the_preferred_image(labels: tuple[float, float], winner: bytes) -> None:
    fields = {"caption": "p", "jpg_0": b"0", "jpg_1": b"1"}
    fields |= {"label_0": labels[0], "label_1": labels[1]}
    assert one("preference", T2I, fields).target_image == winner


def test_edits_and_their_inverse() -> None:
    fields = {"input_image": "a.png", "output_image": "b.png", "edit": "add a hat"}
    assert len(adapt("edit", I2I, fields)) == 1
    there, back = adapt("edit", I2I, {**fields, "inverse_edit": "take the hat off"})
    assert (there.text, there.images, there.target_image) == (
        "add a hat",
        (ROOT / "a.png",),
        ROOT / "b.png",
    )
    assert (back.text, back.images, back.target_image) == (
        "take the hat off",
        (ROOT / "b.png",),
        ROOT / "a.png",
    )
    assert there.key != back.key


def test_speech_serves_both_directions() -> None:
    fields = {"audio": {"bytes": None, "path": "a.flac"}, "text": "HELLO", "speaker": 3}
    heard, spoken = one("speech", S2T, fields), one("speech", T2S, fields)
    assert (heard.text, heard.answer, heard.speech) == ("", "HELLO", ROOT / "a.flac")
    assert (spoken.text, spoken.answer, spoken.speech) == ("HELLO", None, ROOT / "a.flac")


def test_gigaspeech() -> None:
    fields = {
        "audio": "podcast.opus",
        "text": "HELLO <COMMA> WHO IS THERE <QUESTIONMARK>",
        "begin_time": 159.0,
        "end_time": 161.5,
    }
    made = one("speech", S2T, fields)
    assert made.answer == "HELLO, WHO IS THERE?"
    # `datasets` has segments; whole podcasts, as they are first published, are cut on request.
    assert made.span is None
    (cut,) = adapt("speech", S2T, fields, {"start": "begin_time", "end": "end_time"})
    assert cut.span == (159.0, 161.5)
    with pytest.raises(BadSample) as error:
        adapt("speech", S2T, {**fields, "text": "<MUSIC>"})
    assert error.value.kind is BadKind.NO_SPEECH


def test_common_voice_is_in_capitals() -> None:
    made = one("common-voice", S2T, {"path": "clips/a.mp3", "sentence": "Guten Tag, Österreich."})
    assert (made.answer, made.speech) == ("GUTEN TAG, ÖSTERREICH.", ROOT / "clips/a.mp3")


def test_our_own_schema() -> None:
    made = one(
        "record",
        T2T,
        {
            "task": "mmu",
            "images": ["a.png", [1, 2, 3]],
            "text": "q",
            "answer": "a",
            "turns": turns("earlier", "so"),
            "thinking": True,
        },
    )
    assert made == RawRecord(
        task=MMU,
        key="k",
        text="q",
        answer="a",
        turns=(
            {"role": "user", "content": "earlier"},
            {"role": "assistant", "content": "so"},
        ),
        thinking=True,
        images=(ROOT / "a.png", (1, 2, 3)),
    )
    cut = one("record", S2T, {"speech": "a.flac", "start": 1, "end": 2.5, "answer": "so"})
    assert (cut.task, cut.span) == (S2T, (1.0, 2.5))


def test_other_columns() -> None:
    fields = {"text": "not this", "utt": "this", "file": "a.wav", "audio": None}
    (made,) = adapt("speech", T2S, fields, {"text": "utt", "audio": "file"})
    assert (made.text, made.speech) == ("this", ROOT / "a.wav")
    with pytest.raises(BadSample, match="no column 'utt'; the row has text"):
        adapt("speech", T2S, {"text": "a"}, {"text": "utt"})


@pytest.mark.parametrize(
    ("name", "task", "fields", "message"),
    [
        ("pair", T2T, {"prompt": "q"}, "none of the columns answer, .* the row has prompt"),
        ("pair", T2T, {"prompt": "q", "answer": ""}, "column answer is empty"),
        ("pair", T2T, {"prompt": "q", "answer": ["a"]}, "column answer is list, not text"),
        ("record", S2T, {"answer": " ", "speech": "a.wav"}, "the answer is empty"),
        ("record", S2T, {"task": "s2x"}, "'s2x' is not a valid Task"),
        ("record", MMU, {"images": "a.png"}, "images is not a list; for a single one use image"),
        ("record", T2T, {"text": "a", "answer": "b", "thinking": 1}, "thinking=1"),
        ("record", T2T, {"text": 3}, "text is int, not text"),
        ("record", S2T, {"speech": "a", "start": 3, "end": 1}, "0 ≤ start < end"),
        ("record", S2T, {"speech": "a", "start": 3}, "give both in seconds"),
        ("record", V2T, {"video": {"path": 3}}, "3 is not a medium"),
        ("conversations", T2T, {"conversations": []}, "the turns are none"),
        ("conversations", T2T, {"conversations": turns("a")}, "the turns are user; user and"),
        ("conversations", T2T, {"conversations": "hi"}, "a turn has no role and content"),
        ("conversations", T2T, {"conversations": [{"from": "gpt"}]}, "a turn has no role"),
        ("preference", T2I, {"caption": "p", "jpg_0": b""}, "label_0=None"),
        ("prompt-image", T2I, {"prompt": "p"}, "none of the columns image"),
        ("prompt-image", T2I, {"prompt": "p", "image": 7}, "7 is not a medium"),
        ("prompt-image", T2I, {"prompt": "p", "image": [1, "2"]}, "is not a list of codes"),
    ],
)
def test_rows_that_are_bad_samples(
    name: str, task: Task, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadSample, match=message) as error:
        adapt(name, task, fields)
    assert error.value.kind is BadKind.FIELDS


def test_an_unknown_adapter() -> None:
    with pytest.raises(ValueError, match="adapter 'pairs' is unknown; known are record, pair"):
        find_adapter("pairs")


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "/etc/passwd",
        "a/../../b.png",
        "link/passwd",
        "http://host/a.png",
        "file:///data/set/a.png",
        "file:a.png",
        "data:image/png;base64,AAAA",
        "pipe:cat a.png",
        "a\0.png",
    ],
)
def test_media_stay_below_the_root(name: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(BadSample) as error:
        Row(key="k", fields={}, root=tmp_path).medium(name)
    assert error.value.kind is BadKind.PATH


def test_paths_below_the_root(tmp_path: Path) -> None:
    row = Row(key="k", fields={}, root=tmp_path)
    for name in ("a.png", "b/../a.png", str(tmp_path / "a.png")):
        assert row.medium(name) == tmp_path.resolve() / "a.png"


def test_a_member_of_the_sample_needs_no_root() -> None:
    row = Row(key="k", fields={"jpg": b"image", "image": "jpg"})
    assert row.medium(row.fields["image"]) == b"image"
    with pytest.raises(BadSample, match="names no member of the sample"):
        row.medium("png")
