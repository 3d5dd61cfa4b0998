"""Every kind of file as a table: the rows that were written come back, in any order."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import webdataset
from helpers.training_data import SPEECH, digit, write_jsonl

from vllm_dynin.training_ext.data.bad import BadKind, BadSample
from vllm_dynin.training_ext.data.tables import JsonlTable, ParquetTable, data_files, open_table
from vllm_dynin.training_ext.data.tars import TarTable

ROWS = [
    {"prompt": f'Frage {i}: größer, {"x" * (i % 7)}\n"ja"', "answer": f"Ä{i}"} for i in range(100)
]


@pytest.fixture(scope="module", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()


def write_parquet(path: Path) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=13)
    return path


def write_arrow(path: Path) -> Path:
    datasets.Dataset.from_list(ROWS).save_to_disk(path)
    return path


def write_csv(path: Path) -> Path:
    datasets.Dataset.from_list(ROWS).to_csv(path)
    return path


def write_tar(path: Path) -> Path:
    with webdataset.TarWriter(str(path)) as sink:
        for index, row in enumerate(ROWS):
            sink.write({"__key__": f"a.b/{index:04d}", "json": row})
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "rows.jsonl": lambda path: write_jsonl(path, ROWS),
    "rows.parquet": write_parquet,
    "saved": write_arrow,
    "rows.csv": write_csv,
    "rows.tar": write_tar,
}


@pytest.mark.parametrize("name", WRITERS)
def test_rows_come_back_in_any_order(name: str, tmp_path: Path) -> None:
    table = open_table(WRITERS[name](tmp_path / name))
    assert len(table) == len(ROWS)
    for index in [57, 99, 0, 16, 15, 17, 98, 12, 13, 14, *range(100)]:
        assert table[index].fields == ROWS[index]
    assert len({table[index].key for index in range(100)}) == 100
    for index in (-1, 100):
        with pytest.raises(IndexError):
            table[index]


def test_a_file_of_a_saved_set_opens_alone(tmp_path: Path) -> None:
    (file,) = data_files(write_arrow(tmp_path / "saved"))
    assert open_table(file)[42].fields == ROWS[42]


def test_one_split_of_a_saved_set(tmp_path: Path) -> None:
    splits = {
        "train": datasets.Dataset.from_list(ROWS),
        "dev": datasets.Dataset.from_list(ROWS[:3]),
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "both")
    assert len(open_table(tmp_path / "both")) == 100
    assert len(open_table(tmp_path / "both", split="dev")) == 3
    with pytest.raises(ValueError, match="no split 'test'; there are train, dev"):
        open_table(tmp_path / "both", split="test")


def test_common_voice_tsv_keeps_its_quotes(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text('path\tsentence\na.mp3\t"Nein", sagte er.\nb.mp3\tNA\n')
    table = open_table(tmp_path / "train.tsv")
    assert [table[i].fields["sentence"] for i in range(2)] == ['"Nein", sagte er.', "NA"]


def test_folders_and_patterns_are_read_in_order(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS[:20])
    write_jsonl(tmp_path / "b.jsonl", ROWS[20:21])
    write_jsonl(tmp_path / "c.jsonl", ROWS[21:])
    (tmp_path / "notes.txt").write_text("not data")
    for path in (tmp_path, tmp_path / "*.jsonl"):
        table = open_table(path)
        assert [table[index].fields for index in range(len(table))] == ROWS
        assert table[20].key == "b.jsonl:0"
        with pytest.raises(IndexError):
            table[100]


def test_media_of_a_saved_set_stay_bytes(tmp_path: Path) -> None:
    """Neither Pillow nor an audio library of `datasets` opens them: our readers have limits."""
    stream = io.BytesIO()
    digit(3).save(stream, "PNG")
    sound = SPEECH / "slt_three.flac"
    features = datasets.Features(
        {"image": datasets.Image(), "audio": datasets.Audio(), "frames": [datasets.Image()]}
    )
    picture = {"bytes": stream.getvalue(), "path": None}
    rows = [
        {
            "image": picture,
            "audio": {"bytes": sound.read_bytes(), "path": None},
            "frames": [picture, picture],
        }
    ]
    datasets.Dataset.from_list(rows).cast(features).save_to_disk(tmp_path / "media")
    row = open_table(tmp_path / "media")[0]
    assert row.medium(row.fields["image"]) == stream.getvalue()
    assert row.medium(row.fields["audio"]) == sound.read_bytes()
    assert [row.medium(frame) for frame in row.fields["frames"]] == [stream.getvalue()] * 2


def test_empty_lines_do_not_count(tmp_path: Path) -> None:
    lines = [f"{json.dumps(row)}\n" + "\n" * (i % 3) for i, row in enumerate(ROWS)]
    (tmp_path / "rows.jsonl").write_text("\n \n" + "".join(lines).rstrip())
    table = JsonlTable(tmp_path / "rows.jsonl")
    assert [table[index].fields for index in range(len(table))] == ROWS


@pytest.mark.parametrize("line", ["{", "[1]", "7", '{"a": 1} {"b": 2}', "\xff", "[" * 100_000])
def test_a_line_that_is_no_object_is_one_bad_sample(line: str, tmp_path: Path) -> None:
    good = json.dumps({"a": 1}).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([good, line.encode("latin-1"), good]))
    table = JsonlTable(path)
    with pytest.raises(BadSample) as error:
        table[1]
    assert error.value.kind is BadKind.UNREADABLE
    assert table[2].fields == {"a": 1}


def test_a_large_manifest_is_not_read_into_memory(tmp_path: Path) -> None:
    """The released loader keeps every formatted string of a set (defect 23 of the original)."""
    path = tmp_path / "large.jsonl"
    line = json.dumps({"text": "x" * 240}) + "\n"
    path.write_text(line * 40_000)  # 10 MB
    tracemalloc.start()
    table = JsonlTable(path)
    for index in range(0, 40_000, 997):
        assert len(table[index].fields["text"]) == 240
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table) == 40_000
    assert peak < 200_000


def test_parquet_keeps_two_row_groups(tmp_path: Path) -> None:
    table = ParquetTable(write_parquet(tmp_path / "rows.parquet"))
    for index in range(100):
        table[index]
    assert len(table._kept) == 2
    assert table.block == 13


def write_samples(path: Path) -> list[dict[str, Any]]:
    """Samples of several members each, among them names with dots, folders and capitals."""
    samples = []
    with webdataset.TarWriter(str(path)) as sink:
        for index in range(40):
            stream = io.BytesIO()
            digit(index).save(stream, "PNG")
            sample = {
                "__key__": f"folder.x/{index:03d}",
                "png": stream.getvalue(),
                "txt": f"Ziffer größer {index}",
                "meta.json": {"split": "train"},
            }
            sink.write(sample)
            samples.append(sample)
    return samples


def test_tars_read_as_webdataset_reads_them(tmp_path: Path) -> None:
    write_samples(tmp_path / "s.tar")
    theirs = list(webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False))
    table = TarTable(tmp_path / "s.tar")
    assert len(table) == len(theirs) == 40
    for index in [39, 16, 0, 15, 31, 32, *range(40)]:
        row, expected = table[index], theirs[index]
        assert row.key == f"s.tar:{expected['__key__']}"
        assert row.fields["png"] == expected["png"]
        assert row.fields["txt"] == expected["txt"].decode()
        assert row.fields["meta.json"] == expected["meta.json"]
        assert set(row.fields) == {name for name in expected if not name.startswith("__")}


def test_a_tar_by_hand(tmp_path: Path) -> None:
    """Folders, links, hidden and extensionless members are no samples; long names are."""
    long = "n" * 150
    path = tmp_path / "hand.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("folder", "folder/README", f"folder/{long}.TXT", f"folder/{long}.json"):
            info = tarfile.TarInfo(name)
            content = b'{"k": 1}' if name.endswith("json") else b"text"
            if name == "folder":
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("folder/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    table = TarTable(path)
    assert len(table) == 1
    assert table[0].fields == {"txt": "text", "k": 1}


@pytest.mark.parametrize("cut", [100, 5000])
def test_a_tar_cut_off_is_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.tar"
    write_samples(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"cut\.tar.*whole, uncompressed tar"):
        open_table(path)


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as tar:
        tar.add(SPEECH / "README.md", "a.txt")
    with pytest.raises(ValueError, match="gzip -d"):
        open_table(tmp_path / "zipped.tar")


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<a/>")
    for path in (tmp_path, tmp_path / "none.jsonl", tmp_path / "*.tar"):
        with pytest.raises(ValueError, match="no data there"):
            open_table(path)
    with pytest.raises(ValueError, match="of no known kind"):
        open_table(tmp_path / "a.xml")
