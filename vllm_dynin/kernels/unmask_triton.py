"""`unmask` as a Triton kernel: one program a request; unmask_rules.py has the rules.

The place of a slot in the order is counted, not sorted: as many open slots as are better, which
costs W² comparisons (15 µs' worth for an image of 1,024 codes) and needs no shared memory. All that
is added up is whole numbers, so the order of additions does not matter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_dynin.kernels.philox_device import draw
from vllm_dynin.kernels.step_table import WIDTH, Column, Ranking, Rule, SlotState
from vllm_dynin.kernels.unmask_rules import ONE, RANKING_PLACE, Candidates, Canvases, NextRows

SCATTER = 256
PAIRS = 8192
"""Comparisons made together."""

_WIDTH = tl.constexpr(WIDTH)
_ONE, _RANKING_PLACE = tl.constexpr(ONE), tl.constexpr(RANKING_PLACE)
_MASKED, _DECIDED = tl.constexpr(int(SlotState.MASKED)), tl.constexpr(int(SlotState.DECIDED))
_RANDOM, _NOISE = tl.constexpr(int(Ranking.RANDOM)), tl.constexpr(int(Ranking.NOISE))
_REMASK, _THRESHOLD = tl.constexpr(int(Rule.REMASK)), tl.constexpr(int(Rule.THRESHOLD))
_FACTOR, _FRECHET = tl.constexpr(int(Rule.FACTOR)), tl.constexpr(int(Rule.FRECHET))
_ENTROPY = tl.constexpr(int(Rule.ENTROPY))
_CANVAS, _SEED, _STEP, _PLACE = (
    tl.constexpr(int(c)) for c in (Column.CANVAS, Column.SEED, Column.STEP, Column.PLACE)
)
_START, _STOP, _RULE, _RANKING = (
    tl.constexpr(int(c)) for c in (Column.START, Column.STOP, Column.RULE, Column.RANKING)
)
_COUNT, _MIN, _MAX = (tl.constexpr(int(c)) for c in (Column.COUNT, Column.MIN, Column.MAX))
_REVOKE_MAX, _MASK_ID = tl.constexpr(int(Column.REVOKE_MAX)), tl.constexpr(int(Column.MASK_ID))
_FIRST_ROW, _NUM_ROWS = tl.constexpr(int(Column.FIRST_ROW)), tl.constexpr(int(Column.NUM_ROWS))
_NEXT_START, _NEXT_STOP = (tl.constexpr(int(c)) for c in (Column.NEXT_START, Column.NEXT_STOP))
_COMMITTED_OPEN, _COMMITTED_DONE = (
    tl.constexpr(int(c)) for c in (Column.COMMITTED_OPEN, Column.COMMITTED_DONE)
)
_NOISE_SCALE, _PARAMETER, _REVOKE_BELOW = (
    tl.constexpr(int(c)) for c in (Column.NOISE_SCALE, Column.PARAMETER, Column.REVOKE_BELOW)
)


@triton.jit  # type: ignore[untyped-decorator]
def scatter_kernel(  # type: ignore[no-untyped-def]
    row_of_ptr,
    request_ptr,
    slot_ptr,
    table_ptr,
    next_request_ptr,
    next_slot_ptr,
    num_rows,
    num_next,
    width,
    BLOCK: tl.constexpr,
):
    """row_of[request, slot - START] = row; and the next rows emptied."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = row < num_rows
    request = tl.load(request_ptr + row, mask=is_row, other=-1)
    is_row = is_row & (request >= 0)
    slot = tl.load(slot_ptr + row, mask=is_row, other=0)
    start = tl.load(table_ptr + request * _WIDTH + _START, mask=is_row, other=0)
    offset = slot - start
    is_row = is_row & (offset >= 0) & (offset < width)
    tl.store(row_of_ptr + request * width + offset, row, mask=is_row)
    tl.store(next_request_ptr + row, row.to(tl.int64) * 0 - 1, mask=row < num_next)
    tl.store(next_slot_ptr + row, row.to(tl.int64) * 0, mask=row < num_next)


@triton.jit
def _total(x):  # type: ignore[no-untyped-def]
    return tl.reduce(x, 0, tl.standard._sum_combine)


@triton.jit
def _log(x):  # type: ignore[no-untyped-def]
    """The float32 that is nearest to the logarithm, on every device."""
    return tl.log(x.to(tl.float64)).to(tl.float32)


@triton.jit
def _noisy(confidence, scale, uniform):  # type: ignore[no-untyped-def]
    """`noisy_scores` in float32."""
    least = 1e-20
    c = confidence.to(tl.float32)
    score = _log(tl.where(c > least, c, least))
    u = (tl.floor(uniform * 16777216.0) / 16777216.0).to(tl.float32)
    e = -_log(tl.where(u > least, u, least))
    gumbel = -_log(tl.where(e > least, e, least))
    return score + scale * gumbel


@triton.jit
def _ordered(x):  # type: ignore[no-untyped-def]
    """A float64 as an int64 that is ordered as the numbers are."""
    bits = (x + 0.0).to(tl.int64, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFFFFFFFFFF)


@triton.jit
def _ticks(x):  # type: ignore[no-untyped-def]
    """Units of 1 / ONE, rounded half to even: adding 1.5 * 2**52 rounds to whole numbers."""
    y = x * _ONE
    whole = (y + 6755399441055744.0) - 6755399441055744.0
    return tl.where(tl.abs(y) < 2251799813685248.0, whole, y).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def unmask_kernel(  # type: ignore[no-untyped-def]
    ids_ptr,
    state_ptr,
    table_ptr,
    row_of_ptr,
    token_ptr,
    score_ptr,
    confidence_ptr,
    entropy_ptr,
    scratch_ptr,
    next_request_ptr,
    next_slot_ptr,
    counts_ptr,
    num_slots,
    num_next,
    width,
    num_requests,
    FOLLOWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program: one request. scratch: int64 [B, 3, BLOCK]; counts: int32 [5, B]."""
    b = tl.program_id(0).to(tl.int64)
    numbers = table_ptr + b * _WIDTH
    start = tl.load(numbers + _START)
    stop = tl.load(numbers + _STOP)
    rule = tl.load(numbers + _RULE)
    ranking = tl.load(numbers + _RANKING)
    canvas = tl.load(numbers + _CANVAS) * num_slots
    place = tl.arange(0, BLOCK)
    slot = start + place
    is_inside = (slot < stop) & (place < width)
    row = tl.load(row_of_ptr + b * width + place, mask=is_inside, other=-1)
    has_row = row >= 0
    row = tl.where(has_row, row, 0)
    state = tl.load(state_ptr + canvas + slot, mask=is_inside, other=0)
    is_open = has_row & (state == _MASKED)
    confidence = tl.load(confidence_ptr + row, mask=has_row, other=0.0)
    score = tl.load(score_ptr + row, mask=has_row, other=0.0)
    if ranking > 0:
        word = draw(
            place * 0,
            tl.load(numbers + _SEED),
            slot,
            tl.load(numbers + _STEP),
            tl.load(numbers + _PLACE) | _RANKING_PLACE,
        )
        uniform = (word.to(tl.float64) + 0.5) * 2.3283064365386962890625e-10
        scale = tl.load(numbers + _NOISE_SCALE).to(tl.float64, bitcast=True).to(tl.float32)
        noisy = _noisy(confidence, scale, uniform).to(tl.float64)
        score = tl.where(ranking == _RANDOM, uniform, noisy)
    is_remask = rule == _REMASK
    key = _ordered(tl.where(is_remask, -score, score))
    ticks = _ticks(confidence)
    surprise = ticks * 0
    if rule == _ENTROPY:
        surprise = _ticks(tl.load(entropy_ptr + row, mask=has_row, other=0.0))
    num_open = _total(is_open.to(tl.int32)).to(tl.int64)

    # Places in the order, and sums up to each place.
    scratch = scratch_ptr + b * 3 * BLOCK
    tl.store(scratch + place, tl.where(is_open, key, -0x7FFFFFFFFFFFFFFF - 1))
    tl.store(scratch + BLOCK + place, tl.where(is_open, ticks, 0))
    tl.store(scratch + 2 * BLOCK + place, tl.where(is_open, surprise, 0))
    tl.debug_barrier()
    rank = place.to(tl.int64) * 0
    total = rank
    most = rank
    last = tl.where(width < BLOCK, width, BLOCK)
    for first in range(0, last, CHUNK):
        other = first + tl.arange(0, CHUNK)
        other_key = tl.load(scratch + other)[None, :]
        is_known = other_key > -0x7FFFFFFFFFFFFFFF - 1
        is_before = (other_key > key[:, None]) | (
            (other_key == key[:, None]) & (other[None, :] <= place[:, None])
        )
        is_before = is_before & is_known
        rank += tl.reduce(is_before.to(tl.int32), 1, tl.standard._sum_combine)
        if rule >= _FACTOR:
            addend = tl.load(scratch + tl.where(rule == _ENTROPY, 2, 1) * BLOCK + other)[None, :]
            addend = tl.where(is_before, addend, 0)
            total += tl.reduce(addend, 1, tl.standard._sum_combine)
            largest = tl.reduce(addend, 1, tl.standard._elementwise_max)
            most = tl.where(largest > most, largest, most)

    count = tl.load(numbers + _COUNT)
    kept = tl.where(is_remask, num_open - count, count)
    bound = tl.load(numbers + _PARAMETER).to(tl.float64, bitcast=True)
    if rule == _THRESHOLD:
        kept = _total((is_open & (confidence >= bound)).to(tl.int32)).to(tl.int64)
    if rule >= _FACTOR:
        bound = tl.where(bound > 1e6, 1e6, tl.where(bound < -1e6, -1e6, bound))
        limit = _ticks(bound)
        lower = total - (rank - 1) * _ONE
        lower = tl.where(lower > 0, lower, 0)
        by_factor = (rank + 1) * (_ONE - ticks) < limit
        by_frechet = lower - (_ONE - ticks) > limit
        by_entropy = total - most <= limit
        holds = (rule == _FACTOR) & by_factor
        holds = holds | ((rule == _FRECHET) & by_frechet)
        holds = holds | ((rule == _ENTROPY) & by_entropy)
        kept = tl.reduce(tl.where(is_open & holds, rank, 0), 0, tl.standard._elementwise_max)
    least = tl.load(numbers + _MIN)
    kept = tl.where(kept < least, least, kept)
    limit = tl.load(numbers + _MAX)
    kept = tl.where(kept > limit, limit, kept)
    kept = tl.where(kept > num_open, num_open, kept)
    kept = tl.where(kept < 0, 0, kept)
    begin = tl.where(is_remask, num_open - kept, 0)
    is_kept = is_open & (rank > begin) & (rank <= begin + kept)
    token = tl.load(token_ptr + row, mask=is_kept, other=0)
    tl.store(ids_ptr + canvas + slot, token.to(ids_ptr.dtype.element_ty), mask=is_kept)

    # Revoking.
    most_revoked = tl.load(numbers + _REVOKE_MAX)
    most_revoked = tl.where(most_revoked < kept - 1, most_revoked, kept - 1)
    below = tl.load(numbers + _REVOKE_BELOW).to(tl.float64, bitcast=True)
    is_revoked = has_row & (state == _DECIDED) & (confidence < below)
    if most_revoked > 0:
        key = _ordered(confidence)
        tl.debug_barrier()
        tl.store(scratch + place, tl.where(is_revoked, key, 0x7FFFFFFFFFFFFFFF))
        tl.debug_barrier()
        rank = place.to(tl.int64) * 0
        for first in range(0, last, CHUNK):
            other = first + tl.arange(0, CHUNK)
            other_key = tl.load(scratch + other)[None, :]
            is_before = (other_key < key[:, None]) | (
                (other_key == key[:, None]) & (other[None, :] < place[:, None])
            )
            rank += tl.reduce(is_before.to(tl.int32), 1, tl.standard._sum_combine)
        is_revoked = is_revoked & (rank < most_revoked)
        mask_id = tl.load(numbers + _MASK_ID).to(ids_ptr.dtype.element_ty)
        tl.store(
            ids_ptr + canvas + slot,
            place.to(ids_ptr.dtype.element_ty) * 0 + mask_id,
            mask=is_revoked,
        )
    else:
        is_revoked = is_revoked & (place < 0)
    state = tl.where(is_kept, _DECIDED, tl.where(is_revoked, _MASKED, state)).to(tl.uint8)
    tl.store(state_ptr + canvas + slot, state, mask=is_kept | is_revoked)

    if FOLLOWS:
        num_masked = _total((is_inside & (state == _MASKED)).to(tl.int32))
        is_done = num_masked == 0
        committed = tl.where(
            is_done, tl.load(numbers + _COMMITTED_DONE), tl.load(numbers + _COMMITTED_OPEN)
        )
        tl.store(counts_ptr + num_requests + b, num_masked)
        tl.store(counts_ptr + 2 * num_requests + b, kept.to(tl.int32))
        tl.store(counts_ptr + 3 * num_requests + b, _total(is_revoked.to(tl.int32)))
        tl.store(counts_ptr + 4 * num_requests + b, committed.to(tl.int32))
        tl.debug_barrier()
        slot = tl.where(is_done, tl.load(numbers + _NEXT_START), start) + place
        stop = tl.where(is_done, tl.load(numbers + _NEXT_STOP), stop)
        is_inside = (slot < stop) & (place < width)
        state = tl.load(state_ptr + canvas + slot, mask=is_inside, other=0)
        revokes = (tl.load(numbers + _REVOKE_MAX) + place) > place
        is_open = is_inside & ((state == _MASKED) | ((state == _DECIDED) & revokes))
        index = tl.associative_scan(is_open.to(tl.int64), 0, tl.standard._sum_combine) - 1
        at = tl.load(numbers + _FIRST_ROW) + index
        is_open = is_open & (index < tl.load(numbers + _NUM_ROWS)) & (at < num_next)
        tl.store(next_request_ptr + at, place.to(tl.int64) * 0 + b, mask=is_open)
        tl.store(next_slot_ptr + at, slot, mask=is_open)
        tl.store(counts_ptr + b, _total(is_open.to(tl.int32)))


def unmask_triton(
    canvases: Canvases,
    table_BC: Tensor,
    candidates: Candidates,
    following: NextRows | None,
    *,
    width: int,
) -> None:
    """See `unmask`."""
    num_requests, num_rows = len(table_BC), len(candidates.request_R)
    if not num_requests:
        return
    device = table_BC.device
    block = max(16, triton.next_power_of_2(width))
    row_of = torch.full((num_requests, width), -1, dtype=torch.int64, device=device)
    scratch = torch.empty(num_requests, 3, block, dtype=torch.int64, device=device)
    counts = torch.empty(5, num_requests, dtype=torch.int32, device=device)
    follows, num_next = following is not None, 0
    next_request, next_slot = candidates.request_R, candidates.slot_R
    if following is not None:
        next_request, next_slot = following.request_Q, following.slot_Q
        num_next = len(next_slot)
    if num_rows or num_next:
        scatter_kernel[(triton.cdiv(max(num_rows, num_next), SCATTER),)](
            row_of,
            candidates.request_R,
            candidates.slot_R,
            table_BC,
            next_request,
            next_slot,
            num_rows,
            num_next,
            width,
            BLOCK=SCATTER,
        )
    confidence_R, entropy_R = candidates.confidence_R, candidates.entropy_R
    unmask_kernel[(num_requests,)](
        canvases.ids_SN,
        canvases.state_SN,
        table_BC,
        row_of,
        candidates.token_R,
        confidence_R if candidates.score_R is None else candidates.score_R,
        confidence_R,
        confidence_R if entropy_R is None else entropy_R,
        scratch,
        next_request,
        next_slot,
        counts,
        canvases.ids_SN.shape[1],
        num_next,
        width,
        num_requests,
        FOLLOWS=follows,
        BLOCK=block,
        CHUNK=max(1, min(block, PAIRS // block)),
        num_warps=max(4, min(block // 64, 32)),
        enable_fp_fusion=False,  # scores are rounded as the definition rounds them
    )
    if following is not None:
        following.num_rows_B.copy_(counts[0])
        following.num_masked_B.copy_(counts[1])
        following.num_decided_B.copy_(counts[2])
        following.num_revoked_B.copy_(counts[3])
        following.committed_B.copy_(counts[4])
