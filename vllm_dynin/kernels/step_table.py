"""One row of numbers per request and denoising step: what the kernels of a step read.

The table is int64 `[B, WIDTH]`, one row per request of the batch. Columns from `FIRST_FLOAT` on
hold the bits of float64 numbers, so that the whole table is one host-to-device copy.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

WIDTH = 32
FIRST_FLOAT = 24
BLOCK_BITS, REGION_BITS = 20, 8
UNLIMITED = 1 << 30
"""As a count: no limit."""


class Proposal(IntEnum):
    """How a row's column is chosen, and what its probability is."""

    ARGMAX = 0
    """Largest logit; probability from the softmax of the clean logits, in float64."""
    GUMBEL = 1
    """Arg-max of `exp(logit) / (-ln u) ** temperature`; probability as for ARGMAX."""
    SOFTMAX_ARGMAX = 2
    """Largest logit; probability from the softmax in float32."""
    SOFTMAX = 3
    """Drawn from softmax(logits / temperature) in float32: arg-max of p / e with e ~ Exp(1)."""


class Guidance(IntEnum):
    """How the second stream is combined: the forms of `sampling.guidance`."""

    OFF = 0
    DELTA = 1
    WEIGHTED = 2


class Rule(IntEnum):
    """How many proposals are kept; which ones is `Ranking`'s matter."""

    SCHEDULE = 0
    """The best `COUNT`."""
    REMASK = 1
    """All but the worst `COUNT` (MaskGIT)."""
    THRESHOLD = 2
    """Those whose confidence is at least `PARAMETER`."""
    FACTOR = 3
    """The best n, n the largest with (n + 1) (1 - c_n) < `PARAMETER`."""
    FRECHET = 4
    """The best n, n the largest with max(0, Σ c - (n - 1)) - (1 - c_n) > `PARAMETER`."""
    ENTROPY = 5
    """The best n, n the largest with Σ H - max H <= `PARAMETER`, in nats."""


class Ranking(IntEnum):
    """What the slots are ranked by."""

    CONFIDENCE = 0
    """The score handed over with the proposals."""
    RANDOM = 1
    """A uniform draw of the slot, float64."""
    NOISE = 2
    """ln(confidence) + `NOISE_SCALE` times a Gumbel draw of the slot, in float32."""


class SlotState(IntEnum):
    """State of a slot of a canvas."""

    KNOWN = 0
    """Given from the start, or final: never touched."""
    MASKED = 1
    """Holds the mask id and is to be filled."""
    DECIDED = 2
    """Filled by a step; may be revoked until it is given out."""


class Use(IntEnum):
    """What a draw is for; part of its key."""

    PROPOSAL = 0
    RANKING = 1


class Column(IntEnum):
    """Columns of the table."""

    CANVAS = 0
    """Row of the canvas tensor that this request owns."""
    SEED = 1
    """Of the draws: 64 bits, as int64."""
    STEP = 2
    """Denoising step within the block, from 0; part of the key of the draws."""
    PLACE = 3
    """`place(region, block)`; part of the key of the draws."""
    PROPOSAL = 4
    """`Proposal`."""
    GUIDANCE = 5
    """`Guidance`; rows without a second stream are not guided whatever it says."""
    START = 6
    """First slot of the window that this step works on (a block, or a whole region)."""
    STOP = 7
    """Slot behind the window; START == STOP does nothing."""
    RULE = 8
    """`Rule`."""
    RANKING = 9
    """`Ranking`."""
    COUNT = 10
    """Of SCHEDULE and REMASK."""
    MIN = 11
    """At least so many slots are decided in this step, while there are so many masked."""
    MAX = 12
    """At most so many."""
    REVOKE_MAX = 13
    """Slots that may be masked again: at most this, and fewer than are decided in this step."""
    MASK_ID = 14
    """What a masked slot holds."""
    FIRST_ROW = 15
    """Where this request's rows begin in the row list of the next step."""
    NUM_ROWS = 16
    """Rows reserved for it there; what is not needed is filled with -1."""
    NEXT_START = 17
    """First slot of the window to go on with once this one has no mask left."""
    NEXT_STOP = 18
    """Slot behind it; NEXT_START == NEXT_STOP: the request is done then."""
    COMMITTED_OPEN = 19
    """Slots of the canvas that are final while this window has masks."""
    COMMITTED_DONE = 20
    """Slots of the canvas that are final once it has none."""

    TEMPERATURE = 24
    """float64; of GUMBEL and SOFTMAX, above 0."""
    GUIDANCE_SCALE = 25
    """float64."""
    NOISE_SCALE = 26
    """float64; of Ranking.NOISE."""
    PARAMETER = 27
    """float64; of the rule: τ, f, δ or γ."""
    REVOKE_BELOW = 28
    """float64; decided slots whose token's probability is below it may be revoked."""


def place(region: int, block: int) -> int:
    """The place of a draw: index of the region below 256, of the block within it below 2**20."""
    assert 0 <= block < 1 << BLOCK_BITS and 0 <= region < 1 << REGION_BITS, (region, block)
    return region << BLOCK_BITS | block


def new_table(num_requests: int, *, pin: bool = False) -> Tensor:
    """An empty table on the host, int64 [B, WIDTH]: no row does anything.

    Args:
        num_requests: B.
        pin: page-locked, for copies that the host does not wait for.
    """
    table = torch.zeros(num_requests, WIDTH, dtype=torch.int64, pin_memory=pin)
    table[:, Column.MAX] = UNLIMITED
    floats(table)[:, Column.TEMPERATURE - FIRST_FLOAT] = 1.0
    return table


def floats(table_BC: Tensor) -> Tensor:
    """float64 [B, WIDTH - FIRST_FLOAT]: a view of the columns from `FIRST_FLOAT` on."""
    return table_BC.view(torch.float64)[:, FIRST_FLOAT:]


def whole(table_BC: Tensor, column: Column) -> Tensor:
    """int64 [B]: a column of whole numbers, a view."""
    assert column < FIRST_FLOAT, column
    return table_BC[:, column]


def real(table_BC: Tensor, column: Column) -> Tensor:
    """float64 [B]: a column of real numbers, a view."""
    assert column >= FIRST_FLOAT, column
    return table_BC.view(torch.float64)[:, column]


def set_row(table: Tensor, row: int, **values: float) -> None:
    """Write a row of a table on the host; columns that are not named get `new_table`'s values.

    Args:
        table: int64 [B, WIDTH] on the CPU.
        row: index into it.
        values: by the names of `Column`, in lower case; a seed of any size.
    """
    numbers = np.zeros(WIDTH, dtype=np.int64)
    numbers_as_float = numbers.view(np.float64)
    for name, value in ({"max": UNLIMITED, "temperature": 1.0} | values).items():
        column = Column[name.upper()]
        if column >= FIRST_FLOAT:
            numbers_as_float[column] = value
        elif column is Column.SEED:
            numbers[column] = (int(value) + (1 << 63)) % (1 << 64) - (1 << 63)
        else:
            numbers[column] = int(value)
    table.numpy()[row] = numbers
