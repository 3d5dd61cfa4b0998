"""Unmasking: the definition against the rules stated plainly, and every form against it."""

import math
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

from helpers.kernel_forms import gpu_form, triton_forms

from vllm_dynin.kernels.csrc.nvcc import SOURCE
from vllm_dynin.kernels.philox import philox_uniform
from vllm_dynin.kernels.step_table import (
    Ranking,
    Rule,
    SlotState,
    new_table,
    place,
    set_row,
)
from vllm_dynin.kernels.unmask_cpu import unmask_cpu
from vllm_dynin.kernels.unmask_cuda import LIBRARY, load, unmask_cuda
from vllm_dynin.kernels.unmask_rules import (
    ALL_RANKINGS,
    Candidates,
    Canvases,
    NextRows,
    unmask_ref,
)
from vllm_dynin.kernels.unmask_triton import unmask_triton

MASK = 1000


def by_cpu(*arguments, width):
    unmask_cpu(*arguments, width=width, rankings=ALL_RANKINGS)


@cache
def host_library():
    """csrc/unmask.cu as a plain C++ program: one thread a block, on the CPU."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    path = Path(tempfile.mkdtemp()) / "unmask.so"
    flags = ["-DDYNIN_HOST", "-x", "c++", "-std=c++17", "-O1", "-ffp-contract=off", "-fPIC"]
    subprocess.run([compiler, *flags, "-shared", "-o", path, SOURCE], check=True, timeout=120)
    return load(path)


def by_cuda(*arguments, width):
    unmask_cuda(*arguments, width=width, library=host_library())


def by_built_cuda(*arguments, width):
    if not LIBRARY.exists():
        pytest.skip(f"{LIBRARY.name} was not built here: packaging/kernels/compile.py --install")
    unmask_cuda(*arguments, width=width)


FORMS = [
    pytest.param(by_cpu, id="cpu"),
    pytest.param(by_cuda, id="cuda-source-as-c++"),
    *triton_forms(unmask_triton),
    gpu_form(by_built_cuda),
]


class Case:
    """Random requests: windows of all sizes, some slots known, some decided, many ties."""

    def __init__(self, seed, *, num_slots=70, dtype=torch.int64):
        self.rng = rng = np.random.default_rng(seed)
        num_requests = int(rng.integers(1, 6))
        self.width = int(rng.integers(1, num_slots + 1))
        shape = (num_requests + 2, num_slots)
        state = rng.choice([0, 1, 1, 1, 2], size=shape)
        ids = np.where(state == SlotState.MASKED, MASK, rng.integers(0, 900, shape))
        self.canvases = Canvases(
            torch.tensor(ids, dtype=dtype), torch.tensor(state, dtype=torch.uint8)
        )
        self.owners = rng.permutation(shape[0])[:num_requests]
        self.table = new_table(num_requests)
        self.requests, rows, at = [], [], 0
        for b in range(num_requests):
            size = int(rng.integers(0, self.width + 1))
            start = int(rng.integers(0, num_slots - size + 1))
            after = int(rng.integers(0, self.width + 1))
            next_start = int(rng.integers(0, num_slots - after + 1))
            rule = Rule(int(rng.integers(0, 6)))
            bound = {
                Rule.THRESHOLD: 0.5,
                Rule.FACTOR: float(rng.choice([0.5, 1.0, 1.5])),
                Rule.FRECHET: float(rng.choice([0.25, 0.02, -0.5])),
                Rule.ENTROPY: float(rng.choice([0.0, 0.5, 2.0])),
            }.get(rule, 0.0)
            values = {
                "canvas": int(self.owners[b]),
                "seed": int(rng.integers(0, 2**63)),
                "step": int(rng.integers(0, 9)),
                "place": place(1, 2),
                "rule": rule,
                "ranking": Ranking(int(rng.integers(0, 3))),
                "start": start,
                "stop": start + size,
                "count": int(rng.integers(0, 9)),
                "min": int(rng.integers(0, 3)),
                "max": int(rng.choice([3, 1 << 30])),
                "revoke_max": int(rng.choice([0, 1, 3])),
                "revoke_below": 0.4,
                "mask_id": MASK,
                "first_row": at,
                "num_rows": int(rng.choice([self.width, 2])),
                "next_start": next_start,
                "next_stop": next_start + after,
                "committed_open": start,
                "committed_done": start + size,
                "noise_scale": float(rng.choice([0.0, 1.0, 4.5])),
                "parameter": bound,
            }
            at += self.width
            set_row(self.table, b, **values)
            self.requests.append(values)
            for slot in range(start, start + size):
                if state[self.owners[b], slot] and rng.random() < 0.9:
                    rows.append((b, slot))
        rows += [(-1, 0)] * 3
        order = rng.permutation(len(rows))
        request, slot = (torch.tensor([rows[i][k] for i in order]) for k in (0, 1))
        num = len(rows)
        self.candidates = Candidates(
            request,
            slot,
            torch.tensor(rng.integers(2000, 3000, num)),
            torch.tensor(rng.integers(0, 9, num) / 8.0),  # many ties
            score_R=torch.tensor(rng.integers(-4, 4, num) / 4.0) if seed % 3 else None,
            entropy_R=torch.tensor(rng.random(num) * 2),
        )
        self.following = NextRows.empty(num_requests, at + 5, torch.device("cpu"))

    def run(self, form):
        """Canvases, states and what follows, after one call."""
        canvases = Canvases(self.canvases.ids_SN.clone(), self.canvases.state_SN.clone())
        following = NextRows.empty(len(self.table), len(self.following.slot_Q), torch.device("cpu"))
        form(canvases, self.table, self.candidates, following, width=self.width)
        found = {name: getattr(following, name).tolist() for name in vars(following)}
        return found | {"ids": canvases.ids_SN.tolist(), "state": canvases.state_SN.tolist()}

    def scores(self, b):
        """What ranks the slots of a request: slot → number."""
        of, values = self.candidates, self.requests[b]
        found = {}
        for row in (of.request_R == b).nonzero()[:, 0].tolist():
            slot, confidence = int(of.slot_R[row]), of.confidence_R[row]
            score = float(confidence if of.score_R is None else of.score_R[row])
            draw = philox_uniform(
                torch.tensor([slot]),
                1,
                seed=values["seed"],
                step=values["step"],
                place=values["place"] | 1 << 28,
            )[0, 0]
            if values["ranking"] is Ranking.RANDOM:
                score = float(draw)
            if values["ranking"] is Ranking.NOISE:
                u = ((draw * 2**24).floor() / 2**24).float().clamp(min=1e-20)
                gumbel = -(-u.log()).clamp(min=1e-20).log()
                noise = torch.tensor(values["noise_scale"]).float() * gumbel
                score = float(confidence.float().clamp(min=1e-20).log() + noise)
            found[slot] = (score, float(confidence), float(of.entropy_R[row]), row)
        return found

    def expected(self):
        """The rules in plain Python."""
        ids, state = self.canvases.ids_SN.tolist(), self.canvases.state_SN.tolist()
        counts = []
        for b, values in enumerate(self.requests):
            canvas, scores = values["canvas"], self.scores(b)
            masked = [s for s in scores if state[canvas][s] == SlotState.MASKED]
            decided = [s for s in scores if state[canvas][s] == SlotState.DECIDED]
            sign = 1 if values["rule"] is Rule.REMASK else -1
            order = sorted(masked, key=lambda s: (sign * scores[s][0], s))
            kept = self.num_kept(values, [scores[s] for s in order])
            chosen = order[len(order) - kept :] if sign > 0 else order[:kept]
            for slot in chosen:
                ids[canvas][slot] = int(self.candidates.token_R[scores[slot][3]])
                state[canvas][slot] = int(SlotState.DECIDED)
            bad = [s for s in decided if scores[s][1] < values["revoke_below"]]
            most = max(0, min(values["revoke_max"], kept - 1))
            revoked = sorted(bad, key=lambda s: (scores[s][1], s))[:most]
            for slot in revoked:
                ids[canvas][slot], state[canvas][slot] = MASK, int(SlotState.MASKED)
            left = state[canvas][values["start"] : values["stop"]].count(SlotState.MASKED)
            counts.append((left, kept, len(revoked)))
        return ids, state, counts

    @staticmethod
    def num_kept(values, best):
        """How many of the slots, best first, stay."""
        rule, bound, most = values["rule"], values["parameter"], len(best)
        kept = values["count"]
        c, h = [s[1] for s in best], [s[2] for s in best]
        holds = {
            Rule.FACTOR: lambda n: (n + 1) * (1 - c[n - 1]) < bound,
            Rule.FRECHET: lambda n: max(0, math.fsum(c[:n]) - (n - 1)) - (1 - c[n - 1]) > bound,
            Rule.ENTROPY: lambda n: math.fsum(h[:n]) - max(h[:n]) <= bound,
        }
        if rule is Rule.REMASK:
            kept = most - kept
        elif rule is Rule.THRESHOLD:
            kept = sum(p >= bound for p in c)
        elif rule in holds:
            kept = max([n for n in range(1, most + 1) if holds[rule](n)], default=0)
        return max(0, min(max(kept, values["min"]), values["max"], most))


@pytest.mark.parametrize("part", range(4))
def test_the_definition_is_the_rules(part):
    for seed in range(part * 50, part * 50 + 50):
        case = Case(seed)
        ids, state, counts = case.expected()
        found = case.run(unmask_ref)
        assert found["ids"] == ids, seed
        assert found["state"] == state, seed
        kinds = ("num_masked_B", "num_decided_B", "num_revoked_B")
        assert list(zip(*(found[kind] for kind in kinds), strict=True)) == counts
        request, slot = found["request_Q"], found["slot_Q"]
        used = set()
        for b, values in enumerate(case.requests):
            done = counts[b][0] == 0
            first, stop = (
                (values["next_start"], values["next_stop"])
                if done
                else (values["start"], values["stop"])
            )
            open_states = {1, 2} if values["revoke_max"] else {1}
            wanted = [s for s in range(first, stop) if state[values["canvas"]][s] in open_states]
            wanted = wanted[: values["num_rows"]]
            at = slice(values["first_row"], values["first_row"] + len(wanted))
            assert slot[at] == wanted and request[at] == [b] * len(wanted)
            assert found["num_rows_B"][b] == len(wanted)
            used |= set(range(at.start, at.stop))
            committed = values["committed_done"] if done else values["committed_open"]
            assert found["committed_B"][b] == committed
        assert all(request[i] == -1 for i in range(len(request)) if i not in used)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_definition(form):
    for seed in range(40 if form is unmask_triton else 300):
        case = Case(seed, dtype=torch.int32 if seed % 2 else torch.int64)
        assert case.run(form) == case.run(unmask_ref), seed


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_image(form):
    """1,024 codes, all masked; noise as MaskGIT adds it."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.full((1, 1100), MASK)
    state = torch.zeros(1, 1100, dtype=torch.uint8)
    state[:, 30:1054] = SlotState.MASKED
    table = new_table(1)
    set_row(
        table,
        0,
        rule=Rule.REMASK,
        ranking=Ranking.NOISE,
        count=700,
        start=30,
        stop=1054,
        noise_scale=0.8,
        seed=4,
        mask_id=MASK,
        num_rows=1024,
    )
    slot = torch.arange(30, 1054)
    confidence = torch.rand(1024, generator=generator).double() ** 4
    candidates = Candidates(torch.zeros(1024, dtype=torch.int64), slot, slot, confidence)
    states = []
    for run in (unmask_ref, form):
        canvases = Canvases(ids.clone(), state.clone())
        following = NextRows.empty(1, 1024, torch.device("cpu"))
        run(canvases, table, candidates, following, width=1024)
        assert int(following.num_rows_B) == 700 and int(following.num_decided_B) == 324
        states.append(canvases.ids_SN[0].tolist())
    assert states[0] == states[1]


@pytest.mark.parametrize("form", [unmask_ref, *FORMS])
def test_without_what_follows(form):
    case = Case(7)
    canvases = Canvases(case.canvases.ids_SN.clone(), case.canvases.state_SN.clone())
    form(canvases, case.table, case.candidates, None, width=case.width)
    assert canvases.ids_SN.tolist() == case.run(unmask_ref)["ids"]


@pytest.mark.parametrize("form", FORMS)
def test_no_rows_at_all(form):
    case = Case(3)
    empty = torch.zeros(0, dtype=torch.int64)
    case.candidates = Candidates(empty, empty, empty, empty.double())
    found = case.run(form)
    assert found["ids"] == case.canvases.ids_SN.tolist()
    assert found["num_decided_B"] == [0] * len(case.table)
    assert found == case.run(unmask_ref)


@pytest.mark.parametrize("form", [unmask_ref, *FORMS])
def test_equal_sums_at_the_bound_do_not_depend_on_the_order(form):
    """In whole numbers every order of adding agrees: 0.9 + 0.9 - 1 - 0.1 is 0.7, not above it."""
    table = new_table(1)
    set_row(table, 0, rule=Rule.FRECHET, parameter=0.7, stop=2, mask_id=MASK, num_rows=2)
    canvases = Canvases(torch.tensor([[MASK, MASK]]), torch.ones(1, 2, dtype=torch.uint8))
    candidates = Candidates(
        torch.tensor([0, 0]),
        torch.tensor([1, 0]),
        torch.tensor([5, 6]),
        torch.tensor([0.9, 0.9], dtype=torch.float64),
    )
    following = NextRows.empty(1, 2, torch.device("cpu"))
    form(canvases, table, candidates, following, width=2)
    assert int(following.num_decided_B) == 1
