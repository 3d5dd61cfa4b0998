"""Kernels of a step: on a CPU against today's definition, on a GPU against its copy bandwidth.

python benchmarks/bench_kernels.py [--rows 32] [--columns 126464] [--pairs 9] [--json FILE]

On a CPU: proposals with temperature of `--rows` rows, the plain definition and the compiled loops
in turns (A B A B …), processor time of the process, medians and the ratio pair by pair; one thread
unless OMP_NUM_THREADS says otherwise. On a GPU: bytes read per second of row statistics at the
sizes of the published vocabulary, as a share of what a copy of the same bytes reaches, and the time
of unmasking. Both say whether the columns are equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vllm_dynin.kernels.row_statistics import row_statistics
from vllm_dynin.kernels.rows import RowInputs, row_statistics_ref
from vllm_dynin.kernels.step_table import Proposal, Ranking, Rule, new_table, set_row
from vllm_dynin.kernels.unmask import Candidates, Canvases, NextRows, unmask
from vllm_dynin.kernels.unmask_rules import unmask_ref

GPU_ROWS, GPU_COLUMNS = (16, 512, 2048), (126_349, 138_752, 8_192, 4_098)


def inputs(num_rows: int, num_columns: int, proposal: Proposal, device: str = "cpu") -> RowInputs:
    """Rows of one request; bfloat16 on a GPU, each row beginning at a multiple of 128 bytes."""
    table = new_table(1)
    set_row(table, 0, proposal=proposal, seed=1, temperature=0.8)
    index = torch.arange(num_rows, device=device)
    if device == "cpu":
        logits = torch.randn(num_rows, num_columns, generator=torch.Generator().manual_seed(0)) * 3
    else:
        wide = torch.randn(num_rows, -(-num_columns // 64) * 64, device=device).bfloat16() * 3
        logits = wide[:, :num_columns]
    return RowInputs(logits, table.to(device), index * 0, index, proposals={proposal})


def in_turns(
    one: Callable[[], object], other: Callable[[], object], pairs: int
) -> dict[str, float]:
    """Medians of two functions, milliseconds of processor time, and of their ratio."""
    one(), other()
    times = []
    for _ in range(pairs):
        begin = time.process_time()
        one()
        middle = time.process_time()
        other()
        times.append((middle - begin, time.process_time() - middle))
    return {
        "definition_ms": statistics.median(a for a, _ in times) * 1e3,
        "compiled_ms": statistics.median(b for _, b in times) * 1e3,
        "ratio": statistics.median(a / b for a, b in times),
    }


def original(rows: RowInputs) -> Callable[[], Tensor]:
    """What the sampler did before there was a kernel: float64 over whole rows, 16 rows a tile."""
    from vllm_dynin.kernels.philox import philox_uniform
    from vllm_dynin.kernels.rows import gumbel_scores

    def run() -> Tensor:
        columns = []
        for first in range(0, len(rows.slot_R), 16):
            logits, slots = rows.logits_RK[first : first + 16], rows.slot_R[first : first + 16]
            noise = philox_uniform(slots, logits.shape[1], seed=1, step=0, place=0)
            column = gumbel_scores(logits, 0.8, noise).argmax(-1)
            chosen = logits.gather(-1, column[:, None]).double()[:, 0]
            (chosen - logits.double().logsumexp(-1)).exp()
            columns.append(column)
        return torch.cat(columns)

    return run


def on_cpu(num_rows: int, num_columns: int, pairs: int) -> list[dict[str, object]]:
    """Proposals with temperature, and a step of eight requests."""
    rows = inputs(num_rows, num_columns, Proposal.GUMBEL)
    before = original(rows)
    equal = torch.equal(before(), row_statistics(rows).column)
    found: list[dict[str, object]] = [
        {"what": f"proposals, {num_rows} x {num_columns}", "equal": equal}
        | in_turns(before, lambda: row_statistics(rows), pairs)
    ]
    for name, width, rule, ranking in (
        ("blocks of 32", 32, Rule.SCHEDULE, Ranking.CONFIDENCE),
        ("images of 1,024", 1024, Rule.REMASK, Ranking.NOISE),
    ):
        plain, fast = (step(form, width, rule, ranking) for form in (unmask_ref, unmask))
        equal = torch.equal(plain(), fast())
        found.append(
            {"what": f"unmasking of 8 {name}", "equal": equal} | in_turns(plain, fast, pairs)
        )
    return found


def step(
    form: Callable[..., None], width: int, rule: Rule, ranking: Ranking, device: str = "cpu"
) -> Callable[[], Tensor]:
    """A function that unmasks a step of eight requests from the same state; it returns the ids."""
    table = new_table(8)
    for b in range(8):
        values = {"canvas": b, "stop": width, "rule": rule, "ranking": ranking, "mask_id": 9}
        values |= {"count": width // 2, "noise_scale": 0.5, "seed": b}
        set_row(table, b, first_row=b * width, num_rows=width, **values)
    index = torch.arange(8 * width)
    generator = torch.Generator().manual_seed(1)
    confidence = torch.rand(8 * width, generator=generator, dtype=torch.float64).to(device)
    request, slot = (index // width).to(device), (index % width).to(device)
    candidates = Candidates(request, slot, slot + 100, confidence)
    following = NextRows.empty(8, 8 * width, torch.device(device))
    ids = torch.full((8, width), 9, device=device)
    state = torch.ones(8, width, dtype=torch.uint8, device=device)
    table = table.to(device)

    def run() -> Tensor:
        canvases = Canvases(ids.clone(), state.clone())
        options = {"rules": {rule}, "rankings": {ranking}, "revokes": False}
        form(canvases, table, candidates, following, width=width, **options)
        return canvases.ids_SN

    return run


def microseconds(function: Callable[[], object], repeats: int = 30) -> float:
    """Median time on the GPU."""
    for _ in range(5):
        function()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def on_gpu() -> list[dict[str, object]]:
    """Share of the copy bandwidth that row statistics reach, and microseconds of unmasking."""
    found: list[dict[str, object]] = []
    for num_rows in GPU_ROWS:
        for num_columns in GPU_COLUMNS:
            for proposal in (Proposal.ARGMAX, Proposal.GUMBEL):
                rows = inputs(num_rows, num_columns, proposal, "cuda")
                size = num_rows * num_columns * 2
                source = torch.empty(size // 2, dtype=torch.uint8, device="cuda")
                target = torch.empty_like(source)  # read and written: as many bytes as are read
                took = microseconds(lambda rows=rows: row_statistics(rows))
                copy = microseconds(lambda a=source, b=target: b.copy_(a))
                same = row_statistics(rows).column == row_statistics_ref(rows).column
                found.append(
                    {
                        "what": f"{proposal.name}, {num_rows} x {num_columns}",
                        "us": took,
                        "GB/s": size / took / 1e3,
                        "share of copy": copy / took,
                        "equal": bool(same.all()),
                    }
                )
    for width, rule in ((32, Rule.SCHEDULE), (1024, Rule.REMASK), (4096, Rule.REMASK)):
        run = step(unmask, width, rule, Ranking.CONFIDENCE, "cuda")
        found.append({"what": f"unmasking of 8 x {width}", "us": microseconds(run)})
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--columns", type=int, default=126_464)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
        found = on_gpu()
    else:
        found = on_cpu(arguments.rows, arguments.columns, arguments.pairs)
    for line in found:
        print(
            *(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()),
            sep=", ",
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
