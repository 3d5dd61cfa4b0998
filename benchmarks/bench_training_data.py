"""Records a second, memory and state of the training data, from files on disk.

    python benchmarks/bench_training_data.py --records 100000

One manifest of speech units with transcripts, drawn three ways: token files, the JSON Lines file
itself, and the same in Parquet. Shuffled, one record at a time, on one core; times are processor
time. Memory is what Python and NumPy allocate, opening included (tracemalloc), in a run of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.data import open_mixture
from vllm_dynin.training_ext.data.mixture import Mixture
from vllm_dynin.training_ext.data.tokenize import tokenize
from vllm_dynin.training_ext.data.tokenize_job import TokenizeJob

_UNITS, _WORDS = 200, 25
_ROWS = 100


def write_manifest(path: Path, count: int) -> None:
    rng = random.Random(0)
    with open(path, "w") as stream:
        for index in range(count):
            units = [rng.randrange(4096) for _ in range(_UNITS)]
            text = " ".join(f"word{rng.randrange(1000)}" for _ in range(_WORDS))
            row = {"task": "s2t", "speech": units, "answer": f"{index} {text}"}
            stream.write(json.dumps(row) + "\n")


def write_parquet(manifest: Path, path: Path) -> None:
    writer = None
    with open(manifest) as stream:
        while lines := stream.readlines(1 << 22):
            table = pyarrow.Table.from_pylist([json.loads(line) for line in lines])
            writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
            writer.write_table(table, row_group_size=1000)
    assert writer is not None
    writer.close()


def processor_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def opened(path: Path) -> Mixture:
    source = {"path": str(path)}
    return open_mixture({"tasks": {"s2t": {"rows": _ROWS, "sources": [source]}}})


def measure(path: Path, num_steps: int) -> str:
    mixture = opened(path)
    opening = processor_seconds(lambda: opened(path))
    drawing = processor_seconds(lambda: [mixture.next_step() for _ in range(num_steps)])
    state = json.dumps(mixture.state_dict())
    resumed = opened(path)
    resumed.load_state_dict(json.loads(state))
    first = processor_seconds(resumed.next_step)
    tracemalloc.start()
    light = opened(path)
    for _ in range(max(1, num_steps // 10)):
        light.next_step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (
        f"{num_steps * _ROWS / drawing:9,.0f} | {opening:6.2f} | {1e3 * first:7.1f} | "
        f"{peak / 2**20:6.1f} | {len(state):5d}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=100, help=f"of {_ROWS} records")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "rows.jsonl"
        write_manifest(manifest, options.records)
        write_parquet(manifest, manifest.with_suffix(".parquet"))
        job = TokenizeJob(data=str(manifest), out=Path(folder) / "tokens", task=Task.SPEECH_TO_TEXT)
        seconds = processor_seconds(lambda: tokenize(job))
        rate = options.records / seconds
        print(f"{options.records} records; token files written at {rate:,.0f}/s")
        print("kind     | MB on disk | records/s | open s | resume ms | peak MiB | state bytes")
        for name, path in (
            ("tokens", job.out),
            ("jsonl", manifest),
            ("parquet", manifest.with_suffix(".parquet")),
        ):
            files = [path] if path.is_file() else list(path.iterdir())
            size = sum(file.stat().st_size for file in files) / 1e6
            print(f"{name:8} | {size:10.1f} | {measure(path, options.steps)}")


if __name__ == "__main__":
    main()
