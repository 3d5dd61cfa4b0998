"""`vllm-dynin tokenize` from end to end: records, restart, workers, bad samples."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.training_data import DIGITS, every_direction, write_jsonl

from vllm_dynin.canvas import Task
from vllm_dynin.entrypoints import cli
from vllm_dynin.training_ext.data.adapters import find_adapter
from vllm_dynin.training_ext.data.bad import TooManyBad
from vllm_dynin.training_ext.data.encode import Encoder
from vllm_dynin.training_ext.data.rows import Row
from vllm_dynin.training_ext.data.sources import SourceSpec, open_records
from vllm_dynin.training_ext.data.tables import open_table
from vllm_dynin.training_ext.data.token_files import TokenPart, TokenTable
from vllm_dynin.training_ext.data.tokenize import tokenize
from vllm_dynin.training_ext.data.tokenize_job import TokenizeJob, next_device
from vllm_dynin.training_ext.data.where import Condition
from vllm_dynin.training_ext.records import Record

BAD_ROWS = [
    {"task": "mmu", "image": "missing.png", "answer": "nothing"},
    {"task": "mmu", "image": "../outside.png", "answer": "nothing"},
    {"task": "s2t", "speech": "seven.flac", "end": 9, "start": 0, "answer": "seven"},
    {"text": "no task", "answer": "here"},
]


@pytest.fixture(scope="module")
def manifest(media: Path) -> Path:
    return write_jsonl(media / "all.jsonl", every_direction())


def job(manifest: Path, out: Path, codecs_folder: Path | None, **options: object) -> TokenizeJob:
    checkpoint = None if codecs_folder is None else str(codecs_folder)
    values = {"rows_per_part": 10, **options}
    return TokenizeJob(data=str(manifest), out=out, checkpoint=checkpoint, **values)  # type: ignore[arg-type]


def records_of(folder: Path) -> list[Record]:
    parts = [TokenPart(path) for path in sorted(folder.glob("*.safetensors"))]
    return [part[index] for part in parts for index in range(len(part))]


@pytest.fixture(scope="module")
def tokens(manifest: Path, codecs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest, tokenised by the command."""
    out = tmp_path_factory.mktemp("tokens") / "all"
    arguments = [str(manifest), "--out", str(out), "--checkpoint", str(codecs_folder)]
    assert cli.main(["tokenize", *arguments, "--rows-per-part", "10"]) == 0
    return out


def test_every_direction_is_tokenised(tokens: Path, manifest: Path, codecs_folder: Path) -> None:
    settings = job(manifest, tokens, codecs_folder)
    encoder = Encoder(settings.codecs(), settings.encode_options())
    adapter, table = find_adapter("record"), open_table(manifest)
    expected = []
    for index in range(len(table)):
        row = table[index]
        (raw,) = adapter(row, Task(row.fields["task"]))
        expected.append(encoder(raw, manifest.name))
    assert records_of(tokens) == expected
    assert len(expected) == 45
    assert {record.task.value for record in expected} == {
        "t2t", "mmu", "v2t", "s2t", "t2s", "t2i", "i2i",
    }  # fmt: skip
    assert len(list(tokens.glob("tokens-*-of-00005.safetensors"))) == 5
    assert (tokens / "bad.jsonl").read_text() == ""
    part, report = next(tokens.glob("*.safetensors")), tokens / "bad.jsonl"
    assert part.stat().st_mode == report.stat().st_mode  # others may read it where they may read


def test_a_source_takes_its_direction(tokens: Path) -> None:
    spec = SourceSpec(path=str(tokens), name="digits")
    spoken = open_records(spec, Task.TEXT_TO_SPEECH, Encoder())
    assert sorted(spoken.read(index)[0]().text for index in range(len(spoken))) == sorted(DIGITS)
    asked = open_records(spec, Task.IMAGE_TO_TEXT, Encoder())
    assert len(asked) == 11
    assert {asked.read(index)[0]().source for index in range(11)} == {"digits"}


def test_workers_make_the_same_tokens(
    tokens: Path, manifest: Path, codecs_folder: Path, tmp_path: Path
) -> None:
    told: list[int] = []
    settings = job(manifest, tmp_path / "out", codecs_folder)
    report = tokenize(settings, workers=2, progress=told.append)
    assert records_of(tmp_path / "out") == records_of(tokens)
    assert sum(told) == report.num_rows == 45
    assert report.num_records == {
        "t2t": 1, "mmu": 11, "v2t": 2, "i2i": 1, "t2i": 10, "s2t": 10, "t2s": 10,
    }  # fmt: skip


def test_a_killed_run_goes_on(
    tokens: Path, manifest: Path, codecs_folder: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle: no worker goes on, and the next run makes only what is missing."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vllm_dynin.entrypoints.cli", "tokenize", str(manifest)]
    command += ["--out", str(out), "--checkpoint", str(codecs_folder)]
    command += ["--rows-per-part", "1", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not list(out.glob("*.safetensors")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert _has_ended(process.pid), "a worker outlived the command"
    made = sorted(out.glob("*.safetensors"))
    assert 1 <= len(made) < 45
    with pytest.raises(ValueError, match=f"{len(made)} of 45 parts are there"):
        TokenTable(out, Task.TEXT_TO_TEXT)
    (out / f"{made[0].name}.1.tmp").write_text("a part that was being written")
    before = [path.stat().st_mtime_ns for path in made]
    settings = job(manifest, out, codecs_folder, rows_per_part=1)
    assert tokenize(settings).num_parts_made == 45 - len(made)
    assert [path.stat().st_mtime_ns for path in made] == before
    assert not list(out.glob("*.tmp"))
    assert records_of(out) == records_of(tokens)
    # And a third run has nothing to do.
    assert tokenize(settings).num_parts_made == 0


def _has_ended(group: int) -> bool:
    """Whether a process group is gone within half a minute; it is ended where it is not."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return False


def test_bad_samples_are_left_out_and_listed(
    media: Path, codecs_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = every_direction()[5:25]
    manifest = write_jsonl(media / "bad.jsonl", [*good[:10], *BAD_ROWS, *good[10:]])
    with open(manifest, "a") as stream:
        stream.write('{"task": "mmu"\n')
    arguments = [str(manifest), "--out", str(tmp_path / "out"), "--checkpoint", str(codecs_folder)]
    arguments += ["--rows-per-part", "7"]
    assert cli.main(["tokenize", *arguments]) == 1
    message = capsys.readouterr().err
    assert "bad.jsonl: 5 of 25 samples are bad" in message
    assert "over the limit of 1.00%" in message
    listed = [
        json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()
    ]
    assert [(entry["key"], entry["kind"]) for entry in listed] == [
        ("bad.jsonl:10", "media"),
        ("bad.jsonl:11", "path"),
        ("bad.jsonl:12", "media"),
        ("bad.jsonl:13", "fields"),
        ("row 24", "unreadable"),
    ]
    assert "missing.png" in listed[0]["message"]
    assert "leads out of" in listed[1]["message"]
    # The parts stay: with another limit nothing is made again.
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")}
    assert cli.main(["tokenize", *arguments, "--max-bad-share", "0.2"]) == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made
    out = capsys.readouterr().out
    assert "bad samples: 1 fields, 2 media, 1 path, 1 unreadable" in out
    assert "0 of 4 parts made" in out
    assert len(records_of(tmp_path / "out")) == 20


def test_a_bad_set_stops_early(tmp_path: Path) -> None:
    manifest = write_jsonl(tmp_path / "bad.jsonl", [{"task": "t2t", "text": "q"}] * 3000)
    with pytest.raises(TooManyBad, match=r"2\d\d of 2\d\d samples are bad"):
        tokenize(job(manifest, tmp_path / "out", None, rows_per_part=100))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2


def test_another_job_does_not_mix_in(
    tokens: Path,
    manifest: Path,
    codecs_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(manifest), "--out", str(tokens), "--checkpoint", str(codecs_folder)]
    for more, name in (
        (["--video-frames", "2"], "options"),
        (["--rows-per-part", "9"], "rows_per_part"),
        (["--task", "mmu"], "task"),
    ):
        assert cli.main(["tokenize", *arguments, "--rows-per-part", "10", *more]) == 1
        assert f"holds tokens of another job: {name}" in capsys.readouterr().err
    shorter = write_jsonl(tmp_path / "all.jsonl", every_direction()[:-1])
    with pytest.raises(ValueError, match="another job: data"):
        tokenize(job(shorter, tokens, codecs_folder, media_root=str(manifest.parent)))


def test_two_runs_do_not_share_a_folder(
    manifest: Path, codecs_folder: Path, tmp_path: Path
) -> None:
    def again(_: int) -> None:
        with pytest.raises(ValueError, match="another process is writing to"):
            tokenize(job(manifest, tmp_path / "out", codecs_folder))

    tokenize(job(manifest, tmp_path / "out", codecs_folder), progress=again)


def test_sizes_of_a_stage(media: Path, codecs_folder: Path, tmp_path: Path) -> None:
    """The debug stage's two frames in place of the checkpoint's three; an option wins over both."""
    manifest = write_jsonl(media / "clip.jsonl", every_direction()[2:3])
    arguments = ["tokenize", str(manifest), "--checkpoint", str(codecs_folder), "--task", "v2t"]
    stage = ["--stage", "debug"]
    for number, (more, num_frames) in enumerate(
        [([], 3), (stage, 2), ([*stage, "--video-frames", "4"], 4)]
    ):
        out = tmp_path / str(number)
        assert cli.main([*arguments, *more, "--out", str(out)]) == 0
        (record,) = records_of(out)
        assert [len(frame) for frame in record.images] == [4] * num_frames


def test_machines_share_a_folder(
    tokens: Path, manifest: Path, codecs_folder: Path, tmp_path: Path
) -> None:
    """Two machines, one of them in the middle of the other: each its parts, the last the index."""
    settings = job(manifest, tmp_path / "out", codecs_folder)
    reports = []

    def meanwhile(_: int) -> None:
        if reports:
            return
        reports.append(None)
        with pytest.raises(ValueError, match="another process is writing to"):
            tokenize(settings)
        with pytest.raises(ValueError, match="another process is writing to"):
            tokenize(settings, machine=(0, 2))
        (tmp_path / "out" / "tokens.tmp").write_text("what the first is writing")
        reports[0] = tokenize(settings, machine=(1, 2))
        assert (tmp_path / "out" / "tokens.tmp").exists()

    last = tokenize(settings, machine=(0, 2), progress=meanwhile)
    assert (reports[0].num_parts_made, reports[0].num_parts_to_come) == (2, 3)
    assert (last.num_parts_made, last.num_parts_to_come) == (3, 0)
    assert records_of(tmp_path / "out") == records_of(tokens)
    assert len(TokenTable(tmp_path / "out", Task.TEXT_TO_IMAGE)) == 10


def test_only_rows_that_meet_a_condition(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"task": "t2t", "text": "q", "answer": f"{i}", "score": i / 2} for i in range(20)]
    rows[3] |= {"lang": "de"}
    manifest = write_jsonl(tmp_path / "text.jsonl", rows)
    out = str(tmp_path / "out")
    arguments = ["tokenize", str(manifest), "--out", out, "--where", "score > 8"]
    assert cli.main(arguments) == 0
    assert [record.answer for record in records_of(tmp_path / "out")] == ["17", "18", "19"]
    assert "left out by --where: 17 rows\nbad samples: none" in capsys.readouterr().out
    # A row without the column is bad, not left out: the column may be misspelt.
    arguments[3] = str(tmp_path / "two")
    assert cli.main([*arguments, "--where", "lang==de"]) == 1
    assert "column lang is None, which cannot be compared with 'de'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ("a>=2", {"a": 2}, True),
        ("a > 2", {"a": 2}, False),
        ("a != 2", {"a": 2.5}, True),
        ("some column<=-1e3", {"some column": -1000}, True),
        ("lang == de", {"lang": "de"}, True),
        ("lang != de", {"lang": "de"}, False),
    ],
)
def test_conditions(text: str, fields: dict[str, object], expected: bool) -> None:
    assert Condition.parse(text).holds(Row(key="k", fields=fields)) is expected


def test_workers_take_devices_by_turns(manifest: Path, tmp_path: Path) -> None:
    settings = job(manifest, tmp_path, None, device="cuda:0,cuda:1")
    num_started = multiprocessing.Value("q", 0)
    taken = [next_device(settings, num_started) for _ in range(3)]
    assert taken == ["cuda:0", "cuda:1", "cuda:0"]


def test_text_needs_no_checkpoint(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{index}", "answer": "a"} for index in range(25)]
    manifest = write_jsonl(tmp_path / "text.jsonl", rows)
    settings = job(manifest, tmp_path / "out", None, adapter="pair", task=Task.TEXT_TO_TEXT)
    assert tokenize(settings).num_records == {"t2t": 25}
    assert [record.text for record in records_of(tmp_path / "out")] == [r["prompt"] for r in rows]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adapter", "pair"], "adapter 'pair' needs a task"),
        (["--task", "x2y"], "'x2y' is not a valid Task"),
        (["--rows-per-part", "0"], "rows_per_part=0"),
        (["--workers", "0"], "workers=0"),
        (["--column", "text"], "must be NAME=COLUMN"),
        (["--where", "score"], "condition 'score' must be COLUMN"),
        (["--machine", "2"], "--machine 2 must be I/N"),
        (["--machine", "2/2"], "machine 2 of 2: they are numbered from 0"),
        (["--stage", "stage4", "--task", "t2t"], "stage 'stage4' is unknown"),
        (["--stage", "stage2"], "--stage needs --task"),
        (["--stage", "stage1", "--task", "t2i"], "stage1 does not train t2i; it trains v2t"),
        (["--max-speech-seconds", "0"], "max_speech_seconds=0"),
        (["--checkpoint", "/nowhere"], "/nowhere"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_jsonl(tmp_path / "text.jsonl", [{"task": "t2t", "text": "q", "answer": "a"}])
    assert cli.main(["tokenize", str(manifest), "--out", str(tmp_path / "out"), *options]) == 1
    assert message in capsys.readouterr().err
