"""Row statistics against the functions that the decoders call, row by row."""

import pytest
import torch

from vllm_dynin.canvas import GuidanceForm
from vllm_dynin.kernels.row_statistics import RowInputs, row_statistics_ref
from vllm_dynin.kernels.row_statistics_cpu import row_statistics_cpu
from vllm_dynin.kernels.step_table import Guidance, Proposal, new_table, place, set_row
from vllm_dynin.sampling.guidance import guide
from vllm_dynin.sampling.noise import StepDraws

FORMS = [row_statistics_ref, row_statistics_cpu]
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
                name: float(v) if name.endswith(("scale", "ture")) else int(v)
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
        assert float(found.probability[row]) == pytest.approx(probability, rel=1e-12)
    assert not found.flags.any()
