#!/usr/bin/env python3
"""Write the tables of docs/sizing.md, by the functions the engine sizes itself with."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from vllm_dynin import sizing
from vllm_dynin.config import DyninOmniConfig

PAGE = Path(__file__).parents[1] / "docs" / "sizing.md"
GIB = 2**30
CONFIG = DyninOmniConfig(vocab_size=138_752)
DTYPES = {"bf16": 2, "fp32": 4}
BUDGETS = (4_096, 8_192, 16_384)
REQUESTS = {
    "text, 256 + 512": 768,
    "text, 1,024 + 1,024": 2_048,
    "text to image, guided, 512 × 512": 2_320,
    "speech, 100 + 1,000": 1_100,
    "the longest, 4,096 rows": 4_096,
}


def gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f}"


def one_gpu() -> list[str]:
    lines = [
        "| dtype | TP | rows a step | `max_num_seqs` | weights | KV | canvases | forward | sampler "
        "| together |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, size in DTYPES.items():
        for ranks in (1, 2, 4, 8):
            for rows in BUDGETS:
                seqs = sizing.default_requests(rows)
                kv_rows = sizing.exact_blocks(rows, seqs, 16, 4_096) * 16
                cells = (
                    gib(sizing.weight_bytes(CONFIG, size, ranks)),
                    gib(kv_rows * sizing.kv_row_bytes(CONFIG, size, ranks)),
                    gib(sizing.canvas_bytes(CONFIG, rows, size)),
                    gib(sizing.forward_bytes(CONFIG, rows, size, ranks)),
                    gib(sizing.sampler_bytes(size)),
                    gib(sizing.engine_bytes(CONFIG, rows, seqs, size, ranks)),
                )
                lines.append(f"| {name} | {ranks} | {rows:,} | {seqs} | {' | '.join(cells)} |")
    return lines


def requests() -> list[str]:
    lines = [
        "| request | rows | KV, bf16, GiB | KV, fp32, GiB | "
        + " | ".join(f"at once in {rows:,}" for rows in BUDGETS)
        + " |",
        "|---|---|---|---|" + "---|" * len(BUDGETS),
    ]
    for name, rows in REQUESTS.items():
        kv = [gib(rows * sizing.kv_row_bytes(CONFIG, size)) for size in DTYPES.values()]
        counts = [str(min(budget // rows, sizing.default_requests(budget))) for budget in BUDGETS]
        lines.append(f"| {name} | {rows:,} | {' | '.join(kv)} | {' | '.join(counts)} |")
    return lines


TABLES = {"one gpu": one_gpu, "requests": requests}


def rendered(text: str) -> str:
    """The page with its tables as they are computed now."""
    for name, make in TABLES.items():
        opening, closing = (
            f"<!-- {name}: written by packaging/sizing_table.py -->",
            f"<!-- /{name} -->",
        )
        found = re.compile(re.escape(opening) + r".*?" + re.escape(closing), re.DOTALL)
        if not found.search(text):
            raise SystemExit(f"{PAGE} has no place for the table {name!r}")
        table = "\n".join([opening, *make(), closing])
        text = found.sub(lambda _, table=table: table, text)
    return text


def main() -> int:
    before = PAGE.read_text()
    after = rendered(before)
    if "--check" in sys.argv[1:]:
        return int(before != after)
    PAGE.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
