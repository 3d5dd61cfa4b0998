"""`unmask` on a CPU: one loop over the requests, compiled by Numba; unmask_rules.py has the rules.

The plain definition is about ninety operations on small tensors, most of whose time is overhead.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from torch import Tensor

from vllm_dynin.kernels.numba_loops import compiled
from vllm_dynin.kernels.step_table import Column, Ranking, Rule, SlotState
from vllm_dynin.kernels.unmask_rules import ONE, Candidates, Canvases, NextRows, row_scores

_MASKED, _DECIDED = int(SlotState.MASKED), int(SlotState.DECIDED)
_REMASK, _THRESHOLD, _FACTOR = int(Rule.REMASK), int(Rule.THRESHOLD), int(Rule.FACTOR)
_FRECHET, _ENTROPY = int(Rule.FRECHET), int(Rule.ENTROPY)
_CANVAS, _START, _STOP = int(Column.CANVAS), int(Column.START), int(Column.STOP)
_RULE, _COUNT, _MIN, _MAX = (
    int(Column.RULE),
    int(Column.COUNT),
    int(Column.MIN),
    int(Column.MAX),
)
_REVOKE_MAX, _MASK_ID = int(Column.REVOKE_MAX), int(Column.MASK_ID)
_FIRST_ROW, _NUM_ROWS = int(Column.FIRST_ROW), int(Column.NUM_ROWS)
_NEXT_START, _NEXT_STOP = int(Column.NEXT_START), int(Column.NEXT_STOP)
_COMMITTED_OPEN, _COMMITTED_DONE = int(Column.COMMITTED_OPEN), int(Column.COMMITTED_DONE)
_PARAMETER, _REVOKE_BELOW = int(Column.PARAMETER), int(Column.REVOKE_BELOW)


@compiled()
def _num_kept(
    numbers: Any, reals: Any, rows: Any, order: Any, num_open: int, confidence: Any, entropy: Any
) -> Any:
    """How many of the open slots a request's rule decides.

    Args:
        numbers: int64 row of the step table.
        reals: the same, as float64.
        rows: int64, row of each open slot.
        order: int64, places among the open slots, best first.
        num_open: open slots.
        confidence: float64 [R].
        entropy: float64 [R].
    """
    kept: Any = numbers[_COUNT]
    rule = numbers[_RULE]
    if rule == _REMASK:
        kept = num_open - kept
    elif rule == _THRESHOLD:
        kept = 0
        for i in range(num_open):
            if confidence[rows[i]] >= reals[_PARAMETER]:
                kept += 1
    elif rule in (_FACTOR, _FRECHET, _ENTROPY):
        bound = np.int64(np.rint(min(max(reals[_PARAMETER], -1e6), 1e6) * ONE))
        kept = 0
        total: Any = 0
        most: Any = 0
        for n in range(1, num_open + 1):
            row = rows[order[n - 1]]
            if rule == _ENTROPY:
                value = np.int64(np.rint(entropy[row] * ONE))
                total += value
                most = max(most, value)
                holds = total - most <= bound
            else:
                value = np.int64(np.rint(confidence[row] * ONE))
                total += value
                if rule == _FACTOR:
                    holds = (n + 1) * (ONE - value) < bound
                else:
                    holds = max(total - (n - 1) * ONE, 0) - (ONE - value) > bound
            if holds:
                kept = n
    return max(min(min(max(kept, numbers[_MIN]), numbers[_MAX]), num_open), 0)


@compiled()
def _revoke(
    numbers: Any,
    reals: Any,
    slots: Any,
    rows: Any,
    num: int,
    limit: int,
    confidence: Any,
    ids: Any,
    state: Any,
) -> int:
    """Mask the least probable decided slots again; how many.

    Args:
        numbers: int64 row of the step table.
        reals: the same, as float64.
        slots: int64, decided slots that have rows, ascending.
        rows: int64, their rows.
        num: how many there are.
        limit: revoke at most so many.
        confidence: float64 [R].
        ids: the canvas, written.
        state: its state, written.
    """
    key = np.empty(num)
    for i in range(num):
        key[i] = confidence[rows[i]]
    order = np.argsort(key, kind="mergesort")
    num_revoked = 0
    for i in range(num):
        at = order[i]
        if num_revoked >= limit or not key[at] < reals[_REVOKE_BELOW]:
            break
        ids[slots[at]] = numbers[_MASK_ID]
        state[slots[at]] = _MASKED
        num_revoked += 1
    return num_revoked


@compiled()
def _unmask(
    ids: Any,
    state: Any,
    table: Any,
    request: Any,
    slot: Any,
    token: Any,
    score: Any,
    confidence: Any,
    entropy: Any,
    width: int,
    counts: Any,
) -> None:
    """Decide and revoke; counts int32 [5, B]: rows, masked, decided, revoked, committed."""
    reals = table.view(np.float64)
    row_of = np.full((len(table), width), -1, np.int64)
    for row in range(len(request)):
        if request[row] >= 0:
            offset = slot[row] - table[request[row], _START]
            if 0 <= offset < width:
                row_of[request[row], offset] = row
    slots, rows = np.empty((2, width), np.int64), np.empty((2, width), np.int64)
    for b in range(len(table)):
        numbers, canvas = table[b], table[b, _CANVAS]
        num_open, num_decided = 0, 0
        for offset in range(min(width, numbers[_STOP] - numbers[_START])):
            at, row = numbers[_START] + offset, row_of[b, offset]
            if row >= 0 and state[canvas, at] == _MASKED:
                slots[0, num_open], rows[0, num_open] = at, row
                num_open += 1
            elif row >= 0 and state[canvas, at] == _DECIDED:
                slots[1, num_decided], rows[1, num_decided] = at, row
                num_decided += 1
        key = np.empty(num_open)
        is_remask = numbers[_RULE] == _REMASK
        for i in range(num_open):
            value = score[rows[0, i]]
            key[i] = value if is_remask else -value
        order = np.argsort(key, kind="mergesort")
        kept = _num_kept(numbers, reals[b], rows[0], order, num_open, confidence, entropy)
        first = num_open - kept if is_remask else 0
        for i in range(first, first + kept):
            ids[canvas, slots[0, order[i]]] = token[rows[0, order[i]]]
            state[canvas, slots[0, order[i]]] = _DECIDED
        limit = min(numbers[_REVOKE_MAX], kept - 1)
        revoked = 0
        if limit > 0 and num_decided:
            revoked = _revoke(
                numbers,
                reals[b],
                slots[1],
                rows[1],
                num_decided,
                limit,
                confidence,
                ids[canvas],
                state[canvas],
            )
        num_masked = 0
        for at in range(numbers[_START], numbers[_STOP]):
            if state[canvas, at] == _MASKED:
                num_masked += 1
        counts[1, b], counts[2, b], counts[3, b] = num_masked, kept, revoked
        is_done = num_masked == 0
        counts[4, b] = numbers[_COMMITTED_DONE] if is_done else numbers[_COMMITTED_OPEN]


@compiled()
def _follow(
    table: Any, state: Any, num_masked: Any, request: Any, slot: Any, num_rows: Any
) -> None:
    """The rows of the next step."""
    request[:] = -1
    slot[:] = 0
    for b in range(len(table)):
        numbers, is_done = table[b], num_masked[b] == 0
        start = numbers[_NEXT_START] if is_done else numbers[_START]
        stop = numbers[_NEXT_STOP] if is_done else numbers[_STOP]
        num = 0
        for at in range(start, stop):
            what = state[numbers[_CANVAS], at]
            is_open = what == _MASKED or (what == _DECIDED and numbers[_REVOKE_MAX] > 0)
            if is_open and num < numbers[_NUM_ROWS] and numbers[_FIRST_ROW] + num < len(slot):
                request[numbers[_FIRST_ROW] + num] = b
                slot[numbers[_FIRST_ROW] + num] = at
                num += 1
        num_rows[b] = num


def unmask_cpu(
    canvases: Canvases,
    table_BC: Tensor,
    candidates: Candidates,
    following: NextRows | None,
    *,
    width: int,
    rankings: Collection[Ranking],
) -> None:
    """See `unmask`; tensors on the CPU."""
    table, confidence = table_BC.numpy(), candidates.confidence_R.numpy()
    entropy = confidence if candidates.entropy_R is None else candidates.entropy_R.numpy()
    counts = np.zeros((5, len(table)), np.int32)
    state = canvases.state_SN.numpy()
    _unmask(
        canvases.ids_SN.numpy(),
        state,
        table,
        candidates.request_R.numpy(),
        candidates.slot_R.numpy(),
        candidates.token_R.numpy(),
        row_scores(table_BC, candidates, rankings).numpy(),
        confidence,
        entropy,
        width,
        counts,
    )
    if following is None:
        return
    out = (following.request_Q.numpy(), following.slot_Q.numpy())
    _follow(table, state, counts[1], *out, counts[0])
    following.num_rows_B.numpy()[:] = counts[0]
    following.num_masked_B.numpy()[:] = counts[1]
    following.num_decided_B.numpy()[:] = counts[2]
    following.num_revoked_B.numpy()[:] = counts[3]
    following.committed_B.numpy()[:] = counts[4]
