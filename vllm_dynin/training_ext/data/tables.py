"""Data sets as tables of rows: JSON Lines, `datasets` folders, Parquet, CSV, several at once.

Every table reads a row when it is asked for it. What is kept in memory is an offset for every
sixteenth line, or a row group or two.
"""

from __future__ import annotations

import bisect
import glob
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_dynin.training_ext.data.rows import Row, Table, parse_object
from vllm_dynin.training_ext.data.tars import TarTable

if TYPE_CHECKING:
    import pyarrow

_STRIDE = 16
_ROW_GROUPS_KEPT = 2


class JsonlTable:
    """A JSON Lines file: one object a line, UTF-8; empty lines do not count.

    Args:
        path: of the file.
        root: that media paths are relative to; by default the file's folder.
    """

    block: int | None = None

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path, self.name = path, path.name
        self.root = path.parent if root is None else root
        self._offsets = array("q")
        self._size = 0
        position = 0
        with open(path, "rb") as stream:
            for line in stream:
                if line.strip():
                    if self._size % _STRIDE == 0:
                        self._offsets.append(position)
                    self._size += 1
                position += len(line)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self._size:
            raise IndexError(index)
        left = index % _STRIDE
        with open(self.path, "rb") as stream:
            stream.seek(self._offsets[index // _STRIDE])
            while True:
                line = stream.readline()
                if line.strip():
                    if left == 0:
                        break
                    left -= 1
        key = f"{self.name}:{index}"
        return Row(key=key, fields=parse_object(line), root=self.root)


class ArrowTable:
    """A `datasets.Dataset`: memory-mapped, and read without decoding any medium.

    Args:
        dataset: one split.
        name: for keys and reports.
        root: that media paths are relative to; None allows only media that are bytes.
    """

    block: int | None = None

    def __init__(self, dataset: Any, name: str, root: Path | None = None) -> None:
        # In this format media stay {"bytes", "path"}: our own readers, with limits, open them.
        self._dataset = dataset.with_format("arrow")
        self.name, self.root = name, root

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        table: pyarrow.Table = self._dataset[index : index + 1]
        return Row(key=f"{self.name}:{index}", fields=table.to_pylist()[0], root=self.root)


class ParquetTable:
    """A Parquet file, read by row groups in place (`datasets` would copy the whole of it first).

    Args:
        path: of the file.
        root: that media paths are relative to; by default the file's folder.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        import pyarrow.parquet

        self.path, self.name = path, path.name
        self.root = path.parent if root is None else root
        self._file = pyarrow.parquet.ParquetFile(path)
        groups = self._file.metadata
        lengths = [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]
        self._stops = list(accumulate(lengths))
        self.block: int | None = max(lengths, default=1)
        self._kept: OrderedDict[int, pyarrow.Table] = OrderedDict()

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = bisect.bisect_right(self._stops, index)
        start = self._stops[group - 1] if group else 0
        fields = self._group(group).slice(index - start, 1).to_pylist()[0]
        return Row(key=f"{self.name}:{index}", fields=fields, root=self.root)

    def _group(self, number: int) -> pyarrow.Table:
        if number not in self._kept:
            self._kept[number] = self._file.read_row_group(number)
            if len(self._kept) > _ROW_GROUPS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]


class ConcatTable:
    """Several tables one behind the other.

    Args:
        tables: at least one.
        name: of the whole.
    """

    def __init__(self, tables: Sequence[Table], name: str) -> None:
        self._tables, self.name = tables, name
        self._stops = list(accumulate(map(len, tables)))
        self.block = min((t.block for t in tables if t.block is not None), default=None)

    def __len__(self) -> int:
        return self._stops[-1]

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect.bisect_right(self._stops, index)
        return self._tables[which][index - (self._stops[which - 1] if which else 0)]


def open_table(path: str | Path, *, media_root: Path | None = None, split: str = "train") -> Table:
    """Open local data by what it is.

    Args:
        path: a `.jsonl`, `.parquet`, `.arrow`, `.csv`, `.tsv` or `.tar` file; a folder that
            `Dataset.save_to_disk` wrote; a folder of such files; or a pattern with `*`.
        media_root: folder that media paths are relative to; by default that of each file.
        split: of a saved `DatasetDict`.

    Raises:
        ValueError: there is nothing, or nothing of a known kind.
    """
    path = Path(path)
    if path.is_dir() and _is_saved_dataset(path):
        return _saved_dataset(path, media_root, split)
    files = data_files(path)
    tables = [_open_file(file, media_root) for file in files]
    return tables[0] if len(tables) == 1 else ConcatTable(tables, path.name)


def data_files(path: str | Path) -> list[Path]:
    """The files that `open_table` reads, in its order.

    Raises:
        ValueError: there are none.
    """
    path = Path(path)
    if path.is_dir() and _is_saved_dataset(path):
        return sorted(path.rglob("*.arrow"))
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _OPENERS)
    else:
        files = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path))))
    if not files:
        raise ValueError(
            f"{path}: no data there; give a file, pattern or folder of {', '.join(_OPENERS)}"
        )
    return files


def _open_file(path: Path, root: Path | None) -> Table:
    if path.suffix not in _OPENERS:
        raise ValueError(f"{path}: of no known kind; known are {', '.join(_OPENERS)}")
    return _OPENERS[path.suffix](path, root)


def _is_saved_dataset(path: Path) -> bool:
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _saved_dataset(path: Path, root: Path | None, split: str) -> Table:
    import datasets

    saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise ValueError(f"{path}: no split {split!r}; there are {', '.join(map(str, saved))}")
        saved = saved[split]
    return ArrowTable(saved, path.name, path if root is None else root)


def _arrow_file(path: Path, root: Path | None) -> Table:
    import datasets

    dataset = datasets.Dataset.from_file(str(path))
    return ArrowTable(dataset, path.name, path.parent if root is None else root)


def _csv_file(path: Path, root: Path | None) -> Table:
    import datasets

    # Quotes are ordinary characters in Common Voice's TSV files.
    options: dict[str, Any] = {"sep": "\t", "quoting": 3} if path.suffix == ".tsv" else {}
    dataset = datasets.load_dataset(
        "csv", data_files=str(path), split="train", keep_default_na=False, **options
    )
    return ArrowTable(dataset, path.name, path.parent if root is None else root)


_OPENERS: dict[str, Callable[[Path, Path | None], Table]] = {
    ".jsonl": JsonlTable,
    ".parquet": ParquetTable,
    ".arrow": _arrow_file,
    ".csv": _csv_file,
    ".tsv": _csv_file,
    ".tar": TarTable,
}
