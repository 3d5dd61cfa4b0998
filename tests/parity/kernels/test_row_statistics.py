"""Row statistics against the functions that the decoders call, row by row."""

import os
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

from helpers.kernel_forms import triton_forms

from vllm_dynin.canvas import GuidanceForm
from vllm_dynin.kernels import row_statistics_cpu as row_statistics_cpu_module
from vllm_dynin.kernels.row_partials import merge_partials_ref, row_partials_ref
from vllm_dynin.kernels.row_statistics_cpu import row_statistics_cpu
from vllm_dynin.kernels.row_statistics_triton import (
    merge_partials_triton,
    row_partials_triton,
    row_statistics_triton,
)
from vllm_dynin.kernels.rows import RowFlag, RowInputs, row_statistics_ref
from vllm_dynin.kernels.step_table import Guidance, Proposal, new_table, place, set_row
from vllm_dynin.sampling.guidance import guide
from vllm_dynin.sampling.noise import StepDraws

FORMS = [row_statistics_ref, row_statistics_cpu, *triton_forms(row_statistics_triton)]


def merged(row_partials, merge_partials):
    """Statistics by way of the parts of so many ranks."""

    def of_parts(rows, num_parts):
        parts = torch.stack([row_partials(part) for part in cut(rows, num_parts)])
        assert parts.dtype == torch.int64 and parts.shape[2] == 4  # 32 bytes a row
        return merge_partials(parts, rows)

    return of_parts


PARTS = [
    merged(row_partials_ref, merge_partials_ref),
    *triton_forms(merged(row_partials_triton, merge_partials_triton)),
]
SIZES = [(1, 1), (7, 63), (33, 4098), (7, 8193), (1, 126_349)]
REQUESTS = [
    {"proposal": Proposal.ARGMAX, "seed": 1},
    {
        "proposal": Proposal.GUMBEL,
        "seed": 2**63 + 5,
        "step": 3,
        "temperature": 0.7,
        "place": place(1, 4),
        "guidance": Guidance.DELTA,
        "guidance_scale": 1.7,
    },
    {"proposal": Proposal.SOFTMAX_ARGMAX, "guidance": Guidance.WEIGHTED, "guidance_scale": 3.1},
    {
        "proposal": Proposal.SOFTMAX,
        "seed": -4,
        "step": 1,
        "temperature": 1.3,
        "place": place(2, 0),
        "guidance": Guidance.WEIGHTED,
        "guidance_scale": 0.35,
    },
    {"proposal": Proposal.GUMBEL, "seed": 9, "temperature": 1.0},
]


def table():
    rows = new_table(len(REQUESTS))
    for row, values in enumerate(REQUESTS):
        set_row(
            rows,
            row,
            **{
                name: float(v) if name.endswith(("scale", "temperature")) else int(v)
                for name, v in values.items()
            },
        )
    return rows


def inputs(num_rows, num_columns, dtype, spread=4.0):
    generator = torch.Generator().manual_seed(num_rows * num_columns)
    logits = torch.randn(2, num_rows, num_columns, generator=generator) * spread
    logits = logits.to(dtype)
    request = torch.arange(num_rows) % len(REQUESTS)
    forbidden = torch.zeros(num_columns, dtype=torch.bool)
    if num_columns > 2:
        forbidden[[1, num_columns - 1]] = True
    return RowInputs(
        logits_RK=logits[0],
        table_BC=table(),
        request_R=request,
        slot_R=torch.arange(num_rows) * 3 + 1,
        unconditional_UK=logits[1].flip(0),
        pair_R=num_rows - 1 - torch.arange(num_rows),
        forbidden_K=forbidden,
    )


def expected(rows, row):
    """Column and probability of one row, stated plainly for a request alone."""
    values = {"guidance": Guidance.OFF, "step": 0, "place": 0, "seed": 0, "temperature": 1.0}
    values |= REQUESTS[int(rows.request_R[row])]
    logits = rows.logits_RK[row : row + 1]
    other = rows.unconditional_UK[rows.pair_R[row]][None]
    if values["guidance"] is not Guidance.OFF:
        form = GuidanceForm[values["guidance"].name]
        logits = guide(logits, other, values["guidance_scale"], form)
    logits = logits.masked_fill(rows.forbidden_K, -torch.inf)
    at, width, temperature = values["place"], logits.shape[1], values["temperature"]
    draws = StepDraws(values["seed"], at >> 20, at & (1 << 20) - 1, values["step"])
    draws = draws.at(rows.slot_R[row : row + 1])
    column = logits.argmax(-1)
    if values["proposal"] is Proposal.GUMBEL:
        column = (logits.double().exp() / (-draws.uniform(width).log()) ** temperature).argmax(-1)
    p = logits.double().softmax(-1)
    if values["proposal"] in (Proposal.SOFTMAX, Proposal.SOFTMAX_ARGMAX):
        p = (logits.float() / temperature).softmax(-1)
        if values["proposal"] is Proposal.SOFTMAX:
            column = (p / draws.exponential(width, torch.float32)).argmax(-1)
    return int(column), float(p[0, column])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "num_columns"), SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_proposals(form, num_rows, num_columns, dtype):
    rows = inputs(num_rows, num_columns, dtype)
    found = form(rows)
    for row in range(num_rows):
        column, probability = expected(rows, row)
        assert int(found.column[row]) == column
        bound = 1e-12 if form in (row_statistics_ref, row_statistics_cpu) else 3e-6
        assert float(found.probability[row]) == pytest.approx(probability, rel=bound)
    assert not found.flags.any()


def cut(rows, num_parts):
    """The tile of each of so many ranks; the first columns are not multiples of four."""
    width = rows.logits_RK.shape[1]
    ends = [width * part // num_parts for part in range(num_parts + 1)]
    for first, stop in pairwise(ends):
        yield replace(
            rows,
            logits_RK=rows.logits_RK[:, first:stop].contiguous(),
            unconditional_UK=rows.unconditional_UK[:, first:stop].contiguous(),
            forbidden_K=rows.forbidden_K[first:stop],
            first_column=first,
        )


def assert_equal(found, expected):
    """The same columns and flags, and the other numbers within the rounding of their form."""
    assert found.column.tolist() == expected.column.tolist()
    assert found.flags.tolist() == expected.flags.tolist()
    for name in ("probability", "logsumexp", "margin", "entropy"):
        one, other = getattr(found, name), getattr(expected, name)
        assert torch.allclose(one, other, rtol=3e-6, atol=1e-6, equal_nan=True), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_parts", [2, 4])
@pytest.mark.parametrize("of_parts", PARTS)
def test_ranks_agree_with_the_whole(of_parts, num_parts, dtype):
    for num_rows, num_columns in [(7, 63), (6, 8193)]:
        rows = inputs(num_rows, num_columns, dtype)
        given = torch.full((num_rows,), -1)
        given[::3] = num_columns // 2
        rows = replace(rows, given_R=given)
        assert_equal(of_parts(rows, num_parts), row_statistics_ref(rows))


def special(dtype):
    """Rows with what breaks arithmetic; five requests take turns, so each mode meets each kind."""
    width = 5000
    rows = inputs(len(REQUESTS) * 9, width, dtype)
    logits = rows.logits_RK.clone()
    pair = torch.full((len(logits),), -1)
    for kind in range(9):
        part = logits[kind * 5 : kind * 5 + 5]
        if kind == 0:
            part[:] = -torch.inf
        elif kind == 1:
            part[:] = -torch.inf
            part[:, 4500] = -3.0
        elif kind == 2:
            part[:, 4800] = torch.nan
            part[:, 70] = torch.inf
        elif kind == 3:
            part[:, 4096] = torch.inf
        elif kind == 4:
            part[:] = 0.0  # all tie
        elif kind == 5:
            part[:] = -0.0
            part[:, 9:20] = 0.0
        elif kind == 6:
            part[:] = part * 1000
        elif kind == 7:
            part[:] = -800.0
            part[:, 2000:2004] = -760.0
        elif kind == 8:
            part[:, 17] = 60.0  # a probability of 1
    request = rows.request_R.clone()
    return replace(rows, logits_RK=logits, pair_R=pair, request_R=request)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS[1:])
def test_extreme_rows(form, dtype):
    rows = special(dtype)
    found, expected = form(rows), row_statistics_ref(rows)
    assert_equal(found, expected)
    assert expected.flags[:5].tolist() == [RowFlag.EMPTY] * 5
    assert expected.flags[10:20].tolist() == [RowFlag.NOT_FINITE] * 10
    assert not expected.flags[20:].any()


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_no_request(form):
    rows = inputs(7, 63, torch.float32)
    request = rows.request_R.clone()
    request[::2] = -1
    found = form(replace(rows, request_R=request))
    whole = form(rows)
    assert found.column.tolist() == (whole.column * (request >= 0)).tolist()
    assert found.probability[::2].tolist() == [0.0] * 4
    assert found.logsumexp[1::2].tolist() == whole.logsumexp[1::2].tolist()


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_drawn_where_the_host_says_so(form):
    """The kernel without draws is another one; it takes a guided row and a greedy image row."""
    rows = inputs(20, 4098, torch.bfloat16)
    request = torch.arange(20) % 2 * 2  # ARGMAX and SOFTMAX_ARGMAX
    rows = replace(rows, request_R=request, proposals={Proposal.ARGMAX, Proposal.SOFTMAX_ARGMAX})
    assert_equal(form(rows), row_statistics_ref(replace(rows, proposals=frozenset(Proposal))))


def test_a_near_tie_is_left_to_the_definition(monkeypatch):
    """Two columns whose scores agree to all digits: the fast form does not decide by itself."""
    asked = []
    defined = row_statistics_cpu_module._by_definition
    monkeypatch.setattr(
        row_statistics_cpu_module,
        "_by_definition",
        lambda rows, index, found: (asked.append(len(index)), defined(rows, index, found)),
    )
    rows = inputs(1, 4098, torch.float32)
    table = new_table(1)
    set_row(table, 0, proposal=Proposal.GUMBEL, seed=5)
    rows = RowInputs(rows.logits_RK, table, torch.zeros(1, dtype=torch.int64), rows.slot_R)
    draws = StepDraws(5, 0, 0, 0).at(rows.slot_R).uniform(4098)
    wanted = (30 + (-draws.log()).log()).float()  # every score is 30, but for rounding to float32
    logits = torch.where(torch.arange(4098) < 2000, wanted, -1.0)
    rows = replace(rows, logits_RK=logits)
    assert row_statistics_cpu(rows).column.tolist() == row_statistics_ref(rows).column.tolist()
    assert len(asked) <= 1
    same = torch.full((1, 8), -torch.inf)
    same[:] = 700.5  # exp overflows for none, but the numbers are extreme
    rows = replace(rows, logits_RK=same)
    asked.clear()
    assert row_statistics_cpu(rows).column.tolist() == row_statistics_ref(rows).column.tolist()
    assert asked == [1]
