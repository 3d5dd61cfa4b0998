"""Exact match against forwards for the rules that say how many tokens a step decides.

    python benchmarks/unmask_rules.py CHECKPOINT [--per-task 20] [--block 32] [--eos last]

Held-out questions of `tiny-long`, all of them in one batch of the plain PyTorch model, decided by
the definition of `kernels.unmask`. Nothing is cached: a forward is a whole one, so what is saved is
the number of them. An answer ends with the block that holds its first EOS, as in serving. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from vllm_dynin.kernels.row_statistics import RowInputs, row_statistics
from vllm_dynin.kernels.step_table import Proposal, Ranking, Rule, SlotState, new_table, set_row
from vllm_dynin.kernels.unmask import Candidates, Canvases, NextRows, unmask
from vllm_dynin.planning import make_plan
from vllm_dynin.reference.backbone import LLaDA, load_reference
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.decoder import Plan
from vllm_dynin.training_ext.small_text import as_request
from vllm_dynin.training_ext.tiny_long.evaluate import CANVAS
from vllm_dynin.training_ext.tiny_long.tasks import TASKS, held_out


@dataclass(frozen=True)
class Setting:
    """A rule and its number: tokens a step for SCHEDULE, else its parameter."""

    rule: Rule
    value: float

    def __str__(self) -> str:
        return f"{self.rule.name.lower()} {self.value:g}"


SETTINGS = (
    *(Setting(Rule.SCHEDULE, count) for count in (1, 2, 4, 8)),
    *(Setting(Rule.THRESHOLD, tau) for tau in (0.99, 0.9, 0.7, 0.5)),
    *(Setting(Rule.FACTOR, f) for f in (0.1, 0.75, 1.5)),
    *(Setting(Rule.FRECHET, delta) for delta in (0.9, 0.25, -0.5)),
    *(Setting(Rule.ENTROPY, gamma) for gamma in (0.05, 0.4, 1.5)),
)


@dataclass(frozen=True)
class Decoded:
    """What became of one request: its canvas, and the forwards it took."""

    ids: list[int]
    forwards: int


@torch.inference_mode()
def decode(
    model: LLaDA, plans: Sequence[Plan], setting: Setting, *, block: int, eos_last: bool = False
) -> list[Decoded]:
    """Decode requests with canvases of equal length together, greedily."""
    vocabulary, num_slots = model.config.vocabulary, len(plans[0].canvas.slots)
    region = plans[0].canvas.regions[0]
    columns = Columns(region.columns, region.excluded)
    column_ids = columns.ids(model.head_weight.device)
    ids_SN = torch.tensor([plan.canvas.slots for plan in plans])
    is_masked_SN = ids_SN == vocabulary.mask
    state_SN = torch.where(is_masked_SN, int(SlotState.MASKED), int(SlotState.KNOWN)).byte()
    canvases = Canvases(ids_SN, state_SN)
    first, forwards = [0] * len(plans), [0] * len(plans)
    running = list(range(len(plans)))
    while running:
        windows = [(first[s], min(first[s] + block, num_slots)) for s in running]
        table = new_table(len(running))
        for row, (owner, (start, stop)) in enumerate(zip(running, windows, strict=True)):
            set_row(
                table,
                row,
                canvas=owner,
                start=start,
                stop=stop,
                rule=setting.rule,
                count=setting.value if setting.rule is Rule.SCHEDULE else 0,
                parameter=setting.value,
                min=1,
                ranking=Ranking.CONFIDENCE,
                mask_id=vocabulary.mask,
            )
        rows = [
            (row, slot)
            for row, (owner, (start, stop)) in enumerate(zip(running, windows, strict=True))
            for slot in range(start, stop)
            if state_SN[owner, slot] == SlotState.MASKED
        ]
        request_R, slot_R = torch.tensor(rows).unbind(1)
        logits_RK = columns.forbid_excluded(
            _logits(model, [plans[s] for s in running], ids_SN[running], rows, columns)
        )
        inputs = RowInputs(logits_RK, table, request_R, slot_R, proposals={Proposal.ARGMAX})
        found = row_statistics(inputs)
        token_R, confidence_R = column_ids[found.column], found.probability
        if eos_last:
            confidence_R = _behind(confidence_R, token_R == vocabulary.eos, request_R)
        candidates = Candidates(request_R, slot_R, token_R, confidence_R, entropy_R=found.entropy)
        following = NextRows.empty(len(running), 0, ids_SN.device)
        unmask(canvases, table, candidates, following, width=block, revokes=False)
        left, running_now = following.num_masked_B.tolist(), []
        for owner, num_masked, (start, stop) in zip(running, left, windows, strict=True):
            forwards[owner] += 1
            if not num_masked:
                first[owner] = stop
                if stop == num_slots or vocabulary.eos in ids_SN[owner, start:stop]:
                    continue
            running_now.append(owner)
        running = running_now
    return [Decoded(ids, n) for ids, n in zip(ids_SN.tolist(), forwards, strict=True)]


def _behind(confidence_R: Tensor, is_eos_R: Tensor, request_R: Tensor) -> Tensor:
    """EOS counts nothing while another proposal is there."""
    has_other_B = torch.zeros(int(request_R.max()) + 1, dtype=torch.bool)
    has_other_B[request_R[~is_eos_R]] = True
    return torch.where(is_eos_R & has_other_B[request_R], 0.0, confidence_R)


def _logits(
    model: LLaDA,
    plans: Sequence[Plan],
    ids_BN: Tensor,
    rows: Sequence[tuple[int, int]],
    columns: Columns,
) -> Tensor:
    """Logits of the wanted rows; shorter sequences are padded with what nothing attends to."""
    streams = [plan.canvas.conditional for plan in plans]
    longest = max(len(stream.ids) for stream in streams) + ids_BN.shape[1]
    ids, positions, seen = [], [], []
    for stream, canvas in zip(streams, ids_BN.tolist(), strict=True):
        own = [*stream.ids, *canvas]
        filler = [0] * (longest - len(own))
        behind = range(stream.canvas_start, stream.canvas_start + len(canvas))
        ids.append(own + filler)
        positions.append([*stream.positions, *behind, *filler])
        seen.append([True] * len(own) + [False] * len(filler))
    hidden = model.hidden(torch.tensor(ids), torch.tensor(positions), torch.tensor(seen))
    wanted = torch.tensor([(row, len(streams[row].ids) + slot) for row, slot in rows])
    return model.head(hidden[wanted[:, 0], wanted[:, 1]], columns.ids(hidden.device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="that `tiny-long` trained")
    parser.add_argument("--per-task", type=int, default=20, help="held-out questions (default 20)")
    parser.add_argument("--block", type=int, default=32, help="slots of a block (default 32)")
    parser.add_argument("--seed", type=int, default=1, help="of the questions (default 1)")
    parser.add_argument("--eos", choices=("plain", "last"), default="plain")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load_reference(given.checkpoint, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(given.checkpoint)
    questions = list(held_out(given.seed, given.per_task))
    plans = [make_plan(as_request(asked, tokenizer, CANVAS), model.config) for asked in questions]
    eos = model.config.vocabulary.eos
    print(f"| rule | {' | '.join(TASKS)} | all | forwards | tokens a forward |")
    print("| --- |" + " --- |" * (len(TASKS) + 3))
    started = time.process_time()
    for setting in SETTINGS:
        results = decode(model, plans, setting, block=given.block, eos_last=given.eos == "last")
        right: dict[str, list[bool]] = {task: [] for task in TASKS}
        tokens = 0
        for asked, result in zip(questions, results, strict=True):
            end = result.ids.index(eos) if eos in result.ids else len(result.ids)
            tokens += min(end + 1, len(result.ids))
            right[asked.task].append(tokenizer.decode(result.ids[:end]) == asked.answer)
        shares = [sum(values) / len(values) for values in right.values()]
        forwards = sum(result.forwards for result in results)
        cells = [*shares, sum(shares) / len(shares)]
        print(
            f"| {setting} | {' | '.join(f'{share:.2f}' for share in cells)} "
            f"| {forwards / len(results):.1f} | {tokens / forwards:.2f} |",
            flush=True,
        )
    print(
        f"\n{len(questions)} questions of seed {given.seed}, canvas {CANVAS}, block {given.block}, "
        f"EOS {given.eos}, {time.process_time() - started:.0f} s of processor time"
    )


if __name__ == "__main__":
    main()
