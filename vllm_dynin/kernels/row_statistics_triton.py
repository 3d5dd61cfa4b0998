"""`row_statistics` as Triton kernels; row_statistics.py has the contract and the definition.

A row is cut into as many parts as keep the GPU busy. One program reads one part once and keeps, in
registers, what is later merged: the largest and second largest logit, Σ exp and Σ t exp without the
largest one (so that a probability near 1 keeps its distance from 1), and the proposal.

What is drawn is chosen in float32 with an error bound. Where the second best is within the bound,
or the numbers are extreme, the program reads its part again in float64 as the definition has it.
So the column is that of the definition unless two scores agree to about 1e-15 (GUMBEL) or, since
the definition itself rounds to float32 there, to about 1e-6 (SOFTMAX).

Exponentials are summed in float64 for float32 logits. For 16-bit logits each is taken in float32
and their sum over a block is added in float64, which keeps the bandwidth of memory: 1 - probability
is then right to 3e-6 of itself, and two rows change places in an order only if they are closer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_dynin.kernels.philox_device import draw, tile
from vllm_dynin.kernels.rounding_device import rounded
from vllm_dynin.kernels.rows import PARTIAL_WORDS, RowInputs, RowStatistics
from vllm_dynin.kernels.step_table import Column, Guidance, Proposal

BLOCK = 1024
PROGRAMS = 1024
"""Programs to aim at: several for each multiprocessor of the largest GPU."""

_TABLE_WIDTH = tl.constexpr(32)
_SEED, _STEP, _PLACE = (tl.constexpr(int(c)) for c in (Column.SEED, Column.STEP, Column.PLACE))
_PROPOSAL, _GUIDANCE = tl.constexpr(int(Column.PROPOSAL)), tl.constexpr(int(Column.GUIDANCE))
_TEMPERATURE = tl.constexpr(int(Column.TEMPERATURE))
_SCALE = tl.constexpr(int(Column.GUIDANCE_SCALE))
_GUMBEL, _SOFTMAX = tl.constexpr(int(Proposal.GUMBEL)), tl.constexpr(int(Proposal.SOFTMAX))
_SOFTMAX_ARGMAX = tl.constexpr(int(Proposal.SOFTMAX_ARGMAX))
_DELTA, _OFF = tl.constexpr(int(Guidance.DELTA)), tl.constexpr(int(Guidance.OFF))
_NOWHERE = tl.constexpr(2**31 - 1)
_INF = tl.constexpr(float("inf"))


# Triton's own `tl.max` and the like are not interpreted where Triton was imported before
# TRITON_INTERPRET was set; `tl.reduce` is.
@triton.jit
def _max(x):  # type: ignore[no-untyped-def]
    return tl.reduce(x, None, tl.standard._elementwise_max)


@triton.jit
def _min(x):  # type: ignore[no-untyped-def]
    return tl.reduce(x, None, tl.standard._elementwise_min)


@triton.jit
def _sum(x):  # type: ignore[no-untyped-def]
    return tl.reduce(x, None, tl.standard._sum_combine)


@triton.jit  # type: ignore[untyped-decorator]
def _load(  # type: ignore[no-untyped-def]
    logits,
    other,
    forbidden,
    local,
    is_inside,
    form,
    more,
    scale,
    divisor,
    GUIDED: tl.constexpr,
    FORBIDDEN: tl.constexpr,
):
    """Guided logits as float32, each operation rounded to their dtype; -inf outside."""
    x = tl.load(logits + local, mask=is_inside, other=0.0)
    z = x.to(tl.float32)
    if GUIDED:
        if form != _OFF:
            u = tl.load(other + local, mask=is_inside, other=0.0).to(tl.float32)
            if form == _DELTA:
                step = rounded(rounded(z - u, x.dtype) * more, x.dtype)
                z = rounded(u + step, x.dtype)
            else:
                z = rounded(rounded(z * more, x.dtype) - rounded(u * scale, x.dtype), x.dtype)
    if divisor != 1.0:
        z = tl.div_rn(z, tl.where(z == z, divisor, divisor))
    if FORBIDDEN:
        is_inside = is_inside & (tl.load(forbidden + local, mask=is_inside, other=1) == 0)
    return tl.where(is_inside, z, -_INF)


@triton.jit
def _log_noise(word, is_softmax):  # type: ignore[no-untyped-def]
    """ln(-ln u), in SOFTMAX ln(-ln(1 - u)), in float32; word int64."""
    u = (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    v = ((4294967295 - word).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    small = tl.where(is_softmax, u, v)
    large = tl.where(is_softmax, v, u)
    series = small * (1.0 + small * (0.5 + small * (0.33333334 + small * 0.25)))
    return tl.log(tl.where(small < 0.01, series, -tl.log(large)))


@triton.jit
def _exact_score(z, top, temperature, word, is_softmax):  # type: ignore[no-untyped-def]
    """The definition's score in float64; `top` is read in SOFTMAX."""
    u = (word.to(tl.float64) + 0.5) * 2.3283064365386962890625e-10
    z = z.to(tl.float64)
    if is_softmax:
        score = tl.exp(z - top) / -tl.log(1.0 - u)
    else:
        score = tl.exp(z) / tl.exp(temperature * tl.log(-tl.log(u)))
    return score


@triton.jit(do_not_specialize=["first_column", "other_stride"])  # type: ignore[untyped-decorator]
def partials_kernel(  # type: ignore[no-untyped-def]
    out_ptr,
    logits_ptr,
    other_ptr,
    pair_ptr,
    forbidden_ptr,
    given_ptr,
    request_ptr,
    slot_ptr,
    table_ptr,
    num_columns,
    logits_stride,
    other_stride,
    span,
    first_column,
    GUIDED: tl.constexpr,
    FORBIDDEN: tl.constexpr,
    GIVEN: tl.constexpr,
    DRAWS: tl.constexpr,
    PRECISE: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """One program: one part of one row. See `row_partials` for what it writes."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    request = tl.load(request_ptr + row)
    out = out_ptr + (part * tl.num_programs(0) + row) * 4
    if request < 0:
        tl.store(out + tl.arange(0, 4), tl.arange(0, 4).to(tl.int64) * 0)
    else:
        numbers = table_ptr + request * _TABLE_WIDTH
        mode = tl.load(numbers + _PROPOSAL)
        seed = tl.load(numbers + _SEED)
        step = tl.load(numbers + _STEP)
        place = tl.load(numbers + _PLACE)
        temperature = tl.load(numbers + _TEMPERATURE).to(tl.float64, bitcast=True)
        slot = tl.load(slot_ptr + row)
        is_softmax = mode == _SOFTMAX
        is_drawn = (mode == _GUMBEL) | is_softmax
        # The least temperature that divides, as the definition has it.
        least = tl.where(temperature > 1e-5, temperature, temperature * 0.0 + 1e-5)
        divisor = tl.where(is_softmax, least, temperature * 0.0 + 1.0).to(tl.float32)
        soft = tl.where(is_softmax, temperature * 0.0 + 1.0, temperature).to(tl.float32)
        form = mode * 0
        more = divisor * 0.0
        scale = divisor * 0.0
        other = logits_ptr
        if GUIDED:
            pair = tl.load(pair_ptr + row)
            other = other_ptr + tl.where(pair >= 0, pair, 0) * other_stride
            strength = tl.load(numbers + _SCALE).to(tl.float64, bitcast=True)
            form = tl.where(pair >= 0, tl.load(numbers + _GUIDANCE), 0)
            more = (1.0 + strength).to(tl.float32)
            scale = strength.to(tl.float32)
        given = mode * 0 - 1
        if GIVEN:
            given = tl.load(given_ptr + row)
        logits = logits_ptr + row * logits_stride

        # Groups of four columns that share a draw need not begin where this tile does.
        lead = first_column % 4
        group = tl.arange(0, GROUPS)
        place_in_group = tl.arange(0, 4)[None, :]
        begin = part * span
        end = begin + span
        end = tl.where(end < num_columns, end, num_columns)
        # A running maximum and sums for each place in the tile, so that nothing crosses threads
        # until the end.
        zero = tl.full([GROUPS, 4], 0.0, tl.float32)
        first_bad = tl.full([GROUPS, 4], _NOWHERE, tl.int32)
        most = zero - _INF
        second = zero - _INF
        most_at = first_bad
        rest = zero.to(tl.float64) if PRECISE else zero
        weighted = rest
        best = zero - _INF
        runner_up = zero - _INF
        best_at = first_bad
        for start in range(begin - lead, end, GROUPS * 4):
            local = start + group[:, None] * 4 + place_in_group
            is_inside = (local >= begin) & (local < end)
            z = _load(
                logits,
                other,
                forbidden_ptr,
                local,
                is_inside,
                form,
                more,
                scale,
                divisor,
                GUIDED,
                FORBIDDEN,
            )
            is_bad = (z != z) | (z == _INF)
            first_bad = tl.where(is_bad & (local < first_bad), local, first_bad)
            z = tl.where(is_bad, -_INF, z)

            moves = z > most
            if PRECISE:
                d = most.to(tl.float64) - z.to(tl.float64)
            else:
                d = most - z
            d = tl.where(moves, d, -d)
            d = tl.where(d > -10000.0, d, -10000.0)  # also where one or both are -inf
            e = tl.exp(d)
            weighted = tl.where(moves, e * (weighted + d * (rest + 1.0)), weighted + d * e)
            rest = tl.where(moves, e * (rest + 1.0), rest + e)
            loser = tl.where(moves, most, z)
            second = tl.where(loser > second, loser, second)
            most_at = tl.where(moves, local, most_at)
            most = tl.where(moves, z, most)

            if DRAWS and is_drawn:
                word = tile(first_column + start, group, seed, slot, step, place)
                score = z - soft * _log_noise(word, is_softmax)
                score = tl.where(z == -_INF, -_INF, score)
                moves = score > best
                loser = tl.where(moves, best, score)
                runner_up = tl.where(loser > runner_up, loser, runner_up)
                best_at = tl.where(moves, local, best_at)
                best = tl.where(moves, score, best)

        first_bad = _min(first_bad)
        top = _max(most)
        top_at = _min(tl.where(most == top, most_at, _NOWHERE))
        is_top = (most == top) & (most_at == top_at)
        has_one = tl.where(most > -_INF, 1.0, 0.0)
        shift = most.to(tl.float64) - top.to(tl.float64)
        shift = tl.where(shift > -10000.0, shift, -10000.0)
        fade = tl.exp(shift)
        weighted = _sum(fade * (weighted + shift * (rest + has_one)))
        rest = _sum(fade * (rest + tl.where(is_top, 0.0, has_one)))
        loser = tl.where(is_top | (second > most), second, most)
        second = _max(loser)
        most = top
        most_at = tl.where(top_at < _NOWHERE, top_at, begin)
        if DRAWS:
            top = _max(best)
            top_at = _min(tl.where(best == top, best_at, _NOWHERE))
            runner_up = _max(tl.where(best_at == top_at, runner_up, best))
            best = top
            best_at = top_at

        chosen = most_at
        if DRAWS and is_drawn:
            chosen = best_at
            bound = 1e-5 * soft + 1e-6 * tl.abs(best)
            is_clear = (best - runner_up > bound) & (tl.abs(best) < 600.0)
            is_clear = is_clear & (tl.abs(most) < 600.0) & (soft < 20.0)
            if is_clear == 0:
                exact = temperature * 0.0 - 1.0
                anchor64 = tl.where(most == -_INF, most * 0.0, most).to(tl.float64)
                few = tl.arange(0, 64)  # rarely run: small code is worth more than speed
                for start in range(begin - lead, end, 256):
                    local = start + few[:, None] * 4 + place_in_group
                    is_inside = (local >= begin) & (local < end)
                    z = _load(
                        logits,
                        other,
                        forbidden_ptr,
                        local,
                        is_inside,
                        form,
                        more,
                        scale,
                        divisor,
                        GUIDED,
                        FORBIDDEN,
                    )
                    word = tile(first_column + start, few, seed, slot, step, place)
                    score = _exact_score(z, anchor64, temperature, word, is_softmax)
                    score = tl.where(is_inside & (score == score), score, -1.0)
                    top64 = _max(score)
                    top_at = _min(tl.where(score == top64, local, _NOWHERE))
                    chosen = tl.where(top64 > exact, top_at, chosen)
                    exact = tl.where(top64 > exact, top64, exact)
        if GIVEN:
            if given >= 0:
                at = given - first_column
                is_here = (at >= begin) & (at < end)
                chosen = tl.where(is_here, at, _NOWHERE).to(tl.int32)
        chosen = tl.where(first_bad < _NOWHERE, first_bad, chosen)
        is_known = (chosen < _NOWHERE) & (chosen >= begin)
        at = tl.where(is_known, chosen, begin)
        value = _load(
            logits,
            other,
            forbidden_ptr,
            at,
            is_known,
            form,
            more,
            scale,
            divisor,
            GUIDED,
            FORBIDDEN,
        )
        value = tl.where(is_known, value, -_INF)
        column = tl.where(is_known, first_column + chosen, -1).to(tl.int32)
        most = tl.where(first_bad < _NOWHERE, float("nan"), most)
        tl.store(out, rest.to(tl.int64, bitcast=True))
        tl.store(out + 1, weighted.to(tl.int64, bitcast=True))
        tops = (most.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF) | (
            second.to(tl.int32, bitcast=True).to(tl.int64) << 32
        )
        tl.store(out + 2, tops)
        choice = (value.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF) | (
            column.to(tl.int64) << 32
        )
        tl.store(out + 3, choice)


@triton.jit(do_not_specialize=["num_parts"])  # type: ignore[untyped-decorator]
def merge_kernel(  # type: ignore[no-untyped-def]
    parts_ptr,
    partial_ptr,
    column_ptr,
    numbers_ptr,
    flags_ptr,
    given_ptr,
    request_ptr,
    slot_ptr,
    table_ptr,
    num_rows,
    num_parts,
    GIVEN: tl.constexpr,
    FINAL: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One program: all parts of one row, to one part or (FINAL) to its statistics."""
    row = tl.program_id(0).to(tl.int64)
    request = tl.load(request_ptr + row)
    is_row = request >= 0
    numbers = table_ptr + tl.where(is_row, request, 0) * _TABLE_WIDTH
    mode = tl.load(numbers + _PROPOSAL)
    temperature = tl.load(numbers + _TEMPERATURE).to(tl.float64, bitcast=True)
    is_softmax = mode == _SOFTMAX
    part = tl.arange(0, PARTS)
    is_part = part < num_parts
    words = parts_ptr + (part.to(tl.int64) * num_rows + row) * 4
    rest = tl.load(words, mask=is_part, other=0).to(tl.float64, bitcast=True)
    weighted = tl.load(words + 1, mask=is_part, other=0).to(tl.float64, bitcast=True)
    tops = tl.load(words + 2, mask=is_part, other=0)
    choice = tl.load(words + 3, mask=is_part, other=0)
    most = tops.to(tl.int32).to(tl.float32, bitcast=True)
    second = (tops >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    value = choice.to(tl.int32).to(tl.float32, bitcast=True)
    column = (choice >> 32).to(tl.int32)

    most = tl.where(is_part, most, -_INF)
    second = tl.where(is_part, second, -_INF)
    is_bad = most != most
    bad_at = _min(tl.where(is_bad, column, _NOWHERE))
    most = tl.where(is_bad, -_INF, most)
    top = _max(most)
    winner = _min(tl.where(most == top, part, PARTS))
    anchor = tl.where(top == -_INF, top * 0.0, top).to(tl.float64)
    is_empty = most == -_INF
    shift = tl.where(is_empty, 0.0, most.to(tl.float64) - anchor)
    fade = tl.where(is_empty, 0.0, tl.exp(shift))
    others = tl.where(part == winner, rest, rest + 1.0)
    total = _sum(fade * others)
    weight = _sum(fade * (weighted + shift * (rest + 1.0)))
    runner_up = _max(tl.where(part == winner, second, tl.where(second > most, second, most)))

    is_here = is_part & (column >= 0)
    score = value.to(tl.float64)
    if (mode == _GUMBEL) | is_softmax:
        word = draw(
            tl.where(is_here, column, 0),
            tl.load(numbers + _SEED),
            tl.load(slot_ptr + row),
            tl.load(numbers + _STEP),
            tl.load(numbers + _PLACE),
        )
        score = _exact_score(value, anchor, temperature, word, is_softmax)
    if GIVEN:
        if tl.load(given_ptr + row) >= 0:
            score = score * 0.0
            score = tl.where(score == score, score, 0.0)
    score = tl.where(is_here & (score == score), score, -_INF)
    # A column of -inf is chosen where there is no other.
    best = _max(score)
    chosen = _min(tl.where(is_here & (score == best), column, _NOWHERE))
    chosen = tl.where(bad_at < _NOWHERE, bad_at, chosen)
    at = _min(tl.where(is_here & (column == chosen), part, PARTS))
    value = _max(tl.where(part == at, value, -_INF))
    if FINAL:
        is_fine = is_row & (bad_at == _NOWHERE) & (top > -_INF)
        log_total = tl.log(1.0 + total)
        lse = anchor + log_total
        p = tl.exp(value.to(tl.float64) - lse)
        soft = (tl.exp(value.to(tl.float64) - anchor) / (1.0 + total)).to(tl.float32)
        p = tl.where(mode >= _SOFTMAX_ARGMAX, soft.to(tl.float64), p)
        margin = tl.exp(anchor - lse) - tl.exp(runner_up.to(tl.float64) - lse)
        entropy = log_total - weight / (1.0 + total)
        tl.store(column_ptr + row, tl.where(is_fine, chosen, 0).to(tl.int64))
        tl.store(numbers_ptr + row, tl.where(is_fine, p, 0.0))
        tl.store(numbers_ptr + num_rows + row, tl.where(is_fine, lse, 0.0))
        tl.store(numbers_ptr + 2 * num_rows + row, tl.where(is_fine, margin, 0.0))
        tl.store(numbers_ptr + 3 * num_rows + row, tl.where(is_fine, entropy, 0.0))
        flag = tl.where(bad_at < _NOWHERE, 1, tl.where(top == -_INF, 2, 0))
        tl.store(flags_ptr + row, tl.where(is_row, flag, 0))
    else:
        out = partial_ptr + row * 4
        known = tl.where(chosen < _NOWHERE, chosen, -1)
        top = tl.where(bad_at < _NOWHERE, float("nan"), top)
        tl.store(out, total.to(tl.int64, bitcast=True))
        tl.store(out + 1, weight.to(tl.int64, bitcast=True))
        low = top.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        tl.store(out + 2, low | (runner_up.to(tl.int32, bitcast=True).to(tl.int64) << 32))
        low = value.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        tl.store(out + 3, low | (known.to(tl.int64) << 32))


def _num_parts(num_rows: int, num_columns: int) -> int:
    """Parts to cut each row into."""
    most = max(1, num_columns // (8 * BLOCK))
    return max(1, min(most, PROGRAMS // max(1, num_rows), 64))


def _parts(rows: RowInputs) -> Tensor:
    """int64 [P, R, 4]: every part of every row."""
    num_rows, num_columns = rows.logits_RK.shape
    num_parts = _num_parts(num_rows, num_columns)
    span = triton.cdiv(triton.cdiv(num_columns, num_parts), BLOCK) * BLOCK
    num_parts = triton.cdiv(num_columns, span)
    logits_RK = rows.logits_RK
    assert logits_RK.stride(1) == 1 or num_columns == 1, "columns must lie side by side"
    parts = logits_RK.new_empty(num_parts, num_rows, PARTIAL_WORDS, dtype=torch.int64)
    other_UK, is_guided = rows.unconditional_UK, rows.unconditional_UK is not None
    block = min(BLOCK, triton.next_power_of_2(max(64, num_columns + 3)))
    partials_kernel[(num_rows, num_parts)](
        parts,
        logits_RK,
        other_UK if is_guided else logits_RK,
        rows.pair_R if is_guided else rows.slot_R,
        logits_RK if rows.forbidden_K is None else rows.forbidden_K.view(torch.uint8),
        rows.slot_R if rows.given_R is None else rows.given_R,
        rows.request_R,
        rows.slot_R,
        rows.table_BC,
        num_columns,
        logits_RK.stride(0),
        0 if other_UK is None else other_UK.stride(0),
        span,
        rows.first_column,
        GUIDED=is_guided,
        FORBIDDEN=rows.forbidden_K is not None,
        GIVEN=rows.given_R is not None,
        DRAWS=bool({Proposal.GUMBEL, Proposal.SOFTMAX} & set(rows.proposals)),
        PRECISE=logits_RK.dtype == torch.float32,
        GROUPS=block // 4,
        num_warps=8 if block >= 1024 else 4,
        enable_fp_fusion=False,  # guidance rounds after every operation
    )
    return parts


def row_partials_triton(rows: RowInputs) -> Tensor:
    """See `row_partials`."""
    parts = _parts(rows)
    if len(parts) == 1 or not parts.shape[1]:
        return parts[0]
    partial = torch.empty_like(parts[0])
    _merge(parts, rows, partial=partial)
    return partial


def merge_partials_triton(parts_PR4: Tensor, rows: RowInputs) -> RowStatistics:
    """See `merge_partials`."""
    num_rows, device = parts_PR4.shape[1], parts_PR4.device
    column = torch.empty(num_rows, dtype=torch.int64, device=device)
    numbers = torch.empty(4, num_rows, dtype=torch.float64, device=device)
    flags = torch.empty(num_rows, dtype=torch.int32, device=device)
    if num_rows:
        _merge(parts_PR4, rows, column=column, numbers=numbers, flags=flags)
    probability, logsumexp, margin, entropy = numbers
    return RowStatistics(column, probability, logsumexp, margin, entropy, flags)


def row_statistics_triton(rows: RowInputs) -> RowStatistics:
    """See `row_statistics`."""
    if not len(rows.request_R):
        return merge_partials_triton(rows.table_BC.new_empty(1, 0, PARTIAL_WORDS), rows)
    return merge_partials_triton(_parts(rows), rows)


def _merge(
    parts: Tensor,
    rows: RowInputs,
    *,
    partial: Tensor | None = None,
    column: Tensor | None = None,
    numbers: Tensor | None = None,
    flags: Tensor | None = None,
) -> None:
    num_parts, num_rows, _ = parts.shape
    merge_kernel[(num_rows,)](
        parts,
        parts if partial is None else partial,
        parts if column is None else column,
        parts if numbers is None else numbers,
        parts if flags is None else flags,
        rows.slot_R if rows.given_R is None else rows.given_R,
        rows.request_R,
        rows.slot_R,
        rows.table_BC,
        num_rows,
        num_parts,
        GIVEN=rows.given_R is not None,
        FINAL=partial is None,
        PARTS=triton.next_power_of_2(num_parts),
        num_warps=1,
    )
