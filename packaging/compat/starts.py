#!/usr/bin/env python3
"""Start engines as users start them, every combination of what changes a start, and ask each.

    python packaging/compat/starts.py [--only SUBSTRING] [--out FILE.md]

Run by the environment of `make venv` (vLLM 0.32) and, with rig.sh in front, on vLLM 0.33's own
Python, whose worker also runs vLLM's warm-up. Each start is a process of its own: profiling,
warm-up and no sizes but those of the case. Its answers are compared with the reference driver,
token for token. TRITON_ALL=1 leaves the bookkeeping kernels in Triton's interpreter, as a GPU
would compile them.

What a CPU cannot show: graphs are not captured, and the profile frees nothing it measures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 600
MODES: dict[str, dict[str, Any]] = {
    "eager": {"enforce_eager": True},
    "default": {},
    "compiled": {"compilation_config": {"mode": 3}},
}
VOCABULARIES = (640, 72_000)
RIGHT = "answers as the reference"


def cases() -> list[dict[str, Any]]:
    """Every mode, budget, vocabulary and number of ranks."""
    made = [
        {"mode": mode, "budget": budget, "rows": rows, "ranks": ranks}
        for mode, budget, rows, ranks in itertools.product(MODES, (512, 1024), VOCABULARIES, (1, 2))
    ]
    return sorted(made, key=lambda case: case["ranks"])


def name_of(case: dict[str, Any]) -> str:
    return f"{case['mode']}-{case['budget']}-{case['rows']}-tp{case['ranks']}"


def start(case: dict[str, Any], folder: Path) -> None:
    """One start, in this process and those it makes; raises where anything is not as it should."""
    if case["ranks"] == 1:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if case["mode"] == "compiled" and not os.environ.get("GENERATE_CODE"):
        os.environ["VLLM_CPU_CI_ENV"] = "1"  # traced, and run without the compiler's code generator
    from helpers.request_mix import expected_tokens, generate
    from helpers.starts import MAX_MODEL_LEN, STARTED, questions
    from vllm import LLM

    from vllm_dynin import compat
    from vllm_dynin.reference.backbone import load_reference

    if os.environ.get("TRITON_ALL"):
        compat.replace_runner_kernels = list
    reference = load_reference(folder)
    assert MAX_MODEL_LEN == 512, "a budget equal to the context is one of the cases"
    llm = LLM(
        str(folder),
        max_num_batched_tokens=case["budget"],
        tensor_parallel_size=case["ranks"],
        **STARTED,
        **MODES[case["mode"]],
    )
    asked = questions(reference.config)
    expected = [expected_tokens(reference, question) for question in asked]
    assert generate(llm, asked) == expected, "other tokens than the reference"
    print(RIGHT, flush=True)


def run(case: dict[str, Any], folder: Path) -> tuple[str, float]:
    """What came of one start, in words, and its seconds."""
    begun = time.monotonic()
    command = [sys.executable, __file__, "--case", json.dumps(case), "--folder", str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, cwd=ROOT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {TIMEOUT} s", time.monotonic() - begun
    seconds = time.monotonic() - begun
    if done.returncode == 0 and RIGHT in done.stdout:
        return RIGHT, seconds
    said = [line for line in (done.stdout + done.stderr).splitlines() if "Error" in line]
    print(done.stderr[-6000:], file=sys.stderr)
    return (said[-1].strip()[:160] if said else f"exit status {done.returncode}"), seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--out", type=Path, help="where to write the table too")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    if args.case:
        start(json.loads(args.case), args.folder)
        return 0
    for name, value in {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }.items():
        os.environ.setdefault(name, value)
    from helpers.starts import wide_checkpoint

    lines = [
        f"vLLM {version('vllm')}, torch {version('torch')}, context of 512 rows",
        "",
        "| mode | rows of a step | vocabulary | ranks | result | seconds |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folders = {
            rows: wide_checkpoint(Path(temporary) / str(rows), rows) for rows in VOCABULARIES
        }
        for case in cases():
            if args.only not in name_of(case):
                continue
            result, seconds = run(case, folders[case["rows"]])
            failed += result != RIGHT
            lines.append(
                f"| {case['mode']} | {case['budget']:,} | {case['rows']:,} | {case['ranks']} "
                f"| {result} | {seconds:.0f} |"
            )
            print(lines[-1], flush=True)
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
