"""Whole requests decoded in one batch by the two kernels, step by step as their decoders do."""

from dataclasses import dataclass

import pytest
import torch

from vllm_dynin.kernels.row_statistics import RowInputs, row_statistics
from vllm_dynin.kernels.step_table import (
    Proposal,
    Ranking,
    Rule,
    SlotState,
    new_table,
    place,
    set_row,
)
from vllm_dynin.kernels.unmask import Candidates, Canvases, NextRows, unmask
from vllm_dynin.sampling.block import BlockDecoder, BlockOptions
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.maskgit import (
    MaskGitDecoder,
    MaskGitOptions,
    noise_scale,
    num_to_remask,
    scheduled_mask_count,
)
from vllm_dynin.sampling.schedules import block_spans, transfer_counts
from vllm_dynin.sampling.speech import SpeechDecoder, SpeechOptions, speech_spans

MASK, NUM_SLOTS = 99, 40
COLUMNS = Columns(((10, 47),), (20,))
FORBIDDEN = torch.zeros(COLUMNS.width, dtype=torch.bool)
FORBIDDEN[10] = True


def model(ids, slots):
    """Logits that depend on the slot and on everything decided so far; many of them tie."""
    generator = torch.Generator().manual_seed(int(ids.sum()) % 1000)
    table = torch.randn(NUM_SLOTS, COLUMNS.width, generator=generator)
    return ((table[slots] * 4).round() / 2).contiguous()


@dataclass(frozen=True)
class Step:
    """One step of a request as the host knows it beforehand."""

    window: tuple[int, int]
    values: dict


@dataclass(frozen=True)
class Case:
    decoder: type
    options: object
    start: int
    stop: int
    pinned: tuple[int, ...] = ()

    def canvas(self):
        ids = torch.full((NUM_SLOTS,), 5)
        ids[self.start : self.stop] = MASK
        for slot in self.pinned:
            ids[slot] = 30
        return ids

    def steps(self):
        """As the decoders plan them."""
        ids, options, length = self.canvas(), self.options, self.stop - self.start
        if isinstance(options, MaskGitOptions):
            masked = int((ids[self.start : self.stop] == MASK).sum())
            total = masked
            for step in range(options.num_steps):
                is_last = step == options.num_steps - 1
                wanted = scheduled_mask_count(total, step, options.num_steps, options.schedule)
                num = 0 if is_last else num_to_remask(masked, wanted, options.parity)
                greedy = options.is_greedy
                yield Step(
                    (self.start, self.stop),
                    {
                        "rule": Rule.REMASK,
                        "ranking": Ranking.NOISE,
                        "count": num,
                        "step": step,
                        "place": place(0, 0),
                        "proposal": Proposal.SOFTMAX_ARGMAX if greedy else Proposal.SOFTMAX,
                        "noise_scale": noise_scale(step, options.num_steps, options.temperature),
                    },
                )
                masked = num
                if not num:
                    return
            return
        if isinstance(options, SpeechOptions):
            spans = speech_spans(length, options.block_length, options.num_steps)
            greedy, drawn = Proposal.SOFTMAX_ARGMAX, Proposal.SOFTMAX
            ranking = Ranking.CONFIDENCE
        else:
            spans = block_spans(length, options.block_length, options.num_steps)
            greedy, drawn = Proposal.ARGMAX, Proposal.GUMBEL
            random = options.remasking == "random"
            ranking = Ranking.RANDOM if random else Ranking.CONFIDENCE
        for block, span in enumerate(spans):
            window = (self.start + span.start, self.start + span.stop)
            masked = int((ids[slice(*window)] == MASK).sum())
            for step, count in enumerate(n for n in transfer_counts(masked, span.num_steps) if n):
                temperature = options.temperature
                values = {"rule": Rule.SCHEDULE, "ranking": ranking, "count": count}
                values |= {"step": step, "place": place(0, block)}
                values["proposal"] = drawn if temperature else greedy
                values["temperature"] = temperature or 1.0
                yield Step(window, values)


CASES = [
    Case(
        BlockDecoder,
        BlockOptions(
            block_length=8, num_steps=20, temperature=0.0, remasking="low_confidence", seed=0
        ),
        4,
        36,
        (9,),
    ),
    Case(
        BlockDecoder,
        BlockOptions(
            block_length=7, num_steps=11, temperature=0.8, remasking="random", seed=2**64 - 3
        ),
        0,
        40,
    ),
    Case(MaskGitDecoder, MaskGitOptions(num_steps=7, seed=3), 2, 40, (3, 17)),
    Case(MaskGitDecoder, MaskGitOptions(num_steps=5, temperature=0.0), 10, 26),
    Case(
        SpeechDecoder, SpeechOptions(block_length=10, num_steps=12, temperature=1.4, seed=8), 5, 33
    ),
    Case(SpeechDecoder, SpeechOptions(block_length=6, num_steps=9, temperature=0.0), 1, 40, (2,)),
    Case(
        BlockDecoder,
        BlockOptions(
            block_length=16, num_steps=6, temperature=1.0, remasking="low_confidence", seed=1
        ),
        8,
        40,
    ),
]


def by_decoder(case):
    """The canvas after every step."""
    ids = case.canvas()
    decoder = case.decoder(
        ids, case.start, case.stop, mask_id=MASK, columns=COLUMNS, options=case.options
    )
    while not decoder.finished:
        slots = decoder.wanted()
        logits = model(ids, slots)
        decoder.step(slots, lambda first, stop, logits=logits: logits[first:stop].clone())
        yield ids.clone(), decoder.num_committed


def by_kernels(cases):
    """The canvases after every step of the batch; a request that is done stays as it is."""
    plans = [list(case.steps()) for case in cases]
    ids = torch.stack([case.canvas() for case in cases])
    state = torch.where(ids == MASK, int(SlotState.MASKED), int(SlotState.KNOWN)).to(torch.uint8)
    canvases, column_ids = Canvases(ids, state), COLUMNS.ids(torch.device("cpu"))
    following = NextRows.empty(len(cases), len(cases) * NUM_SLOTS, torch.device("cpu"))
    # What is open at first: a step that decides nothing writes it.
    empty = torch.zeros(0, dtype=torch.int64)
    nothing = Candidates(empty, empty, empty, empty.double())
    for number in range(-1, max(map(len, plans))):
        table = new_table(len(cases))
        for row, (case, plan) in enumerate(zip(cases, plans, strict=True)):
            values = {"canvas": row, "seed": case.options.seed, "mask_id": MASK}
            values |= {"first_row": row * NUM_SLOTS, "num_rows": NUM_SLOTS}
            values |= {"committed_done": case.stop, "committed_open": case.stop}
            if 0 <= number < len(plan):
                now = plan[number]
                values |= now.values | {"start": now.window[0], "stop": now.window[1]}
                values["committed_open"] = now.window[0]
                values["committed_done"] = now.window[1]
            if number + 1 < len(plan):
                window = plan[number + 1].window
                values |= {"next_start": window[0], "next_stop": window[1]}
            set_row(table, row, **values)
        if number < 0:
            candidates = nothing
        else:
            request, slot = following.request_Q.clone(), following.slot_Q.clone()
            logits = torch.zeros(len(slot), COLUMNS.width)
            for row in range(len(cases)):
                mine = request == row
                logits[mine] = model(ids[row], slot[mine])
            found = row_statistics(RowInputs(logits, table, request, slot, forbidden_K=FORBIDDEN))
            tokens = column_ids[found.column]
            candidates = Candidates(request, slot, tokens, found.probability)
        unmask(canvases, table, candidates, following, width=NUM_SLOTS)
        if number >= 0:
            yield ids.clone(), following


@pytest.mark.parametrize("cases", [[case] for case in CASES] + [CASES, CASES[::-1]])
def test_as_the_decoders_do(cases):
    expected = [list(by_decoder(case)) for case in cases]
    for number, (ids, following) in enumerate(by_kernels(cases)):
        for row, states in enumerate(expected):
            canvas, committed = states[min(number, len(states) - 1)]
            assert ids[row].tolist() == canvas.tolist(), (number, row)
            if number < len(states):
                assert int(following.committed_B[row]) == committed, (number, row)
    assert not (ids == MASK).any()
