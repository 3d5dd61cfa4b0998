"""`row_statistics` on a CPU: loops over a row that stays in the cache, compiled by Numba.

Nothing is drawn in float64 and no logarithm is taken where a column cannot win: `-ln u >= 1 - u`
bounds its score from above, and only columns that the bound leaves are looked at closely. A row in
which two columns come so close that rounding decides, or whose numbers are extreme, is left to the
definition, so that the columns are those of the definition, always.

Imported when it is first needed: Numba takes a while to import.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_dynin.kernels.numba_loops import compiled
from vllm_dynin.kernels.rows import (
    RowInputs,
    RowStatistics,
    guided_logits,
    row_statistics_ref,
)
from vllm_dynin.kernels.step_table import Column, Proposal

CHUNK = 1024
"""Columns worked on together; a multiple of 4, so that groups of draws are whole."""

_LOG2E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_SHIFT = 6755399441055744.0  # 1.5 * 2**52: adding it rounds to a whole number
_SHIFT_BITS = 0x4338000000000000
GUMBEL, SOFTMAX = int(Proposal.GUMBEL), int(Proposal.SOFTMAX)
UNDECIDED = -1
"""As a column: the definition is to decide."""


# FMA instructions, and sums in as many lanes as the processor has: neither changes what a row
# yields from call to call. No `reassoc` where exponentials are taken: it would undo the two steps
# in which the argument is reduced.
# Short loops over few arrays: more arrays, and LLVM gives up proving that they do not overlap.
@compiled("contract")
def _arguments(z: Any, first: int, size: int, top: float, scale: float, t: Any, n: Any) -> None:
    for i in range(size):
        t[i] = max((np.float64(z[first + i]) - top) * scale, -701.0)
    for i in range(size):
        n[i] = t[i] * _LOG2E + _SHIFT


@compiled("contract")
def _mantissas(t: Any, n: Any, e: Any, size: int) -> None:
    for i in range(size):
        whole = n[i] - _SHIFT
        r = (t[i] - whole * _LN2_HIGH) - whole * _LN2_LOW
        p = 1.0 / 6227020800.0
        p = p * r + 1.0 / 479001600.0
        p = p * r + 1.0 / 39916800.0
        p = p * r + 1.0 / 3628800.0
        p = p * r + 1.0 / 362880.0
        p = p * r + 1.0 / 40320.0
        p = p * r + 1.0 / 5040.0
        p = p * r + 1.0 / 720.0
        p = p * r + 1.0 / 120.0
        p = p * r + 1.0 / 24.0
        p = p * r + 1.0 / 6.0
        p = p * r + 0.5
        e[i] = p * r * r + r + 1.0


@compiled()
def _scale(bits: Any, powers: Any, size: int) -> None:
    for i in range(size):
        bits[i] += (powers[i] - _SHIFT_BITS) << 52


@compiled()
def _exponentials(z: Any, first: int, stop: int, top: float, scale: float, scratch: Any) -> None:
    """scratch[0] = t = (z - top) * scale <= 0 and scratch[1] = exp(t), about 0 below -700."""
    t, e, n = scratch[0], scratch[1], scratch[2]
    _arguments(z, first, stop - first, top, scale, t, n)
    _mantissas(t, n, e, stop - first)
    _scale(e.view(np.int64), n.view(np.int64), stop - first)


@compiled("contract", "reassoc", "nsz")
def _sums(t: Any, e: Any, size: int) -> tuple[float, float]:
    """Σ e and Σ t e."""
    total, weighted = 0.0, 0.0
    for i in range(size):
        total += e[i]
        weighted += t[i] * e[i]
    return total, weighted


@compiled()
def _ordered(bits: Any) -> Any:
    """The bits of a float32 as an integer that is ordered as the numbers are."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@compiled()
def _largest(z: Any, tops: Any) -> tuple[Any, Any, Any]:
    """Column of the largest logit (ties: the lowest), the second largest, and whether all is well.

    Args:
        z: float32 [K].
        tops: int32 scratch, one entry per chunk.
    """
    bits = z.view(np.int32)
    num_columns = len(z)
    best, best_chunk, least = np.int32(-(2**31)), 0, np.int32(2**31 - 1)
    num_chunks = (num_columns + CHUNK - 1) // CHUNK
    for chunk in range(num_chunks):
        first, stop = chunk * CHUNK, min((chunk + 1) * CHUNK, num_columns)
        top = np.int32(-(2**31))
        for i in range(first, stop):
            b = bits[i] & np.int32(-1 if z[i] != 0 else 0)  # -0.0 and 0.0 tie
            key = b ^ ((b >> np.int32(31)) & np.int32(0x7FFFFFFF))
            top = max(top, key)
            least = min(least, key)
        tops[chunk] = top
        if top > best:
            best, best_chunk = top, chunk
    # A NaN is above the key of +inf, or with its sign bit below that of -inf.
    is_finite = best < np.int32(0x7F800000) and least >= np.int32(-0x7F800001)
    column, second = -1, np.int32(-(2**31))
    for i in range(best_chunk * CHUNK, min((best_chunk + 1) * CHUNK, num_columns)):
        key = _ordered(bits[i] & np.int32(-1 if z[i] != 0 else 0))
        if key == best and column < 0:
            column = i
        else:
            second = max(second, key)
    for chunk in range(num_chunks):
        if chunk != best_chunk:
            second = max(second, tops[chunk])
    if num_columns == 1:
        return column, -np.inf, is_finite
    second_bits = np.array([second ^ ((second >> np.int32(31)) & np.int32(0x7FFFFFFF))], np.int32)
    return column, np.float64(second_bits.view(np.float32)[0]), is_finite


@compiled()
def _words(first: int, num_groups: int, key: Any, out: Any) -> None:
    """Philox words of columns 4 * first and following; key = (seed low, high, slot, step, place).

    Args:
        first: group of columns.
        num_groups: of four columns.
        key: uint64 [5].
        out: uint32 [4, CHUNK // 4], words of a group below each other.
    """
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    m0, m1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    w0, w1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
    for i in range(num_groups):
        c0, c1, c2, c3 = np.uint64(first + i), key[2], key[3], key[4]
        k0, k1 = key[0], key[1]
        for _ in range(10):
            p0, p1 = (c0 & low) * m0, (c2 & low) * m1
            c0, c1 = (p1 >> half) ^ c1 ^ k0, p1 & low
            c2, c3 = (p0 >> half) ^ c3 ^ k1, p0 & low
            k0, k1 = (k0 + w0) & low, (k1 + w1) & low
        out[0, i], out[1, i] = np.uint32(c0), np.uint32(c1)
        out[2, i], out[3, i] = np.uint32(c2), np.uint32(c3)


@compiled("contract")
def _over(scratch: Any, words: Any, size: int, level: float, reverse: bool, over: Any) -> Any:
    """Weight - level * v, v a lower bound of the noise: below 0 a column cannot win.

    In float32, so `level` is to be less by a little than where that is decided.

    Args:
        scratch: float64 [3, CHUNK]; scratch[1] has the weights, exp(logit / temperature) but for a
            factor.
        words: uint32 [4, CHUNK // 4].
        size: columns.
        level: weight / noise of the best column so far, less a little.
        reverse: the noise is -ln u, at least 1 - u; else -ln(1 - u), at least u.
        over: float32 [CHUNK], written.

    Returns:
        The largest.
    """
    weight = scratch[1]
    flip = np.uint32(0xFFFFFFFF) if reverse else np.uint32(0)
    least, unit, offset = np.float32(level), np.float32(2.0**-32), np.float32(2.0**-33)
    for i in range((size + 3) // 4):  # four at once: LLVM then loads and stores whole vectors
        a = np.float32(words[0, i] ^ flip) * unit + offset
        b = np.float32(words[1, i] ^ flip) * unit + offset
        c = np.float32(words[2, i] ^ flip) * unit + offset
        d = np.float32(words[3, i] ^ flip) * unit + offset
        over[4 * i] = np.float32(weight[4 * i]) - least * a
        over[4 * i + 1] = np.float32(weight[4 * i + 1]) - least * b
        over[4 * i + 2] = np.float32(weight[4 * i + 2]) - least * c
        over[4 * i + 3] = np.float32(weight[4 * i + 3]) - least * d
    most = np.float32(-1.0)
    for i in range(size):
        most = max(most, over[i])
    return most


@compiled()
def _uniform(words: Any, i: int) -> float:
    return (np.float64(words[i & 3, i >> 2]) + 0.5) * 2.0**-32


@compiled()
def _draw_gumbel(
    z: Any, most: int, temperature: float, key: Any, scratch: Any, words: Any, over: Any
) -> tuple[int, float, float]:
    """The column that the definition of Proposal.GUMBEL chooses, or UNDECIDED; and the sums.

    Args:
        z: float32 [K].
        most: column of the largest.
        temperature: above 0.
        key: see `_words`.
        scratch: float64 [3, CHUNK].
        words: uint32 [4, CHUNK // 4].
        over: float32 [CHUNK].
    """
    num_columns, top = len(z), np.float64(z[most])
    size = max(1.0, abs(top), temperature)
    _words(most // 4, 1, key, words)
    column = most
    best = top - temperature * math.log(-math.log(_uniform(words, most & 3)))
    runner_up, total, weighted = -np.inf, 0.0, 0.0
    for first in range(0, num_columns, CHUNK):
        stop = min(first + CHUNK, num_columns)
        _words(first // 4, (stop - first + 3) // 4, key, words)
        _exponentials(z, first, stop, top, 1.0, scratch)
        of_chunk = _sums(scratch[0], scratch[1], stop - first)
        total += of_chunk[0]
        weighted += of_chunk[1]
        # With a temperature of at most 1 they are upper bounds as they are, and close enough ones.
        if not 0.3 <= temperature <= 1.0:
            _exponentials(z, first, stop, top, 1.0 / temperature, scratch)
        level = math.exp((best - top - 1e-10 * size) / temperature) * (1.0 - 3e-6)
        if _over(scratch, words, stop - first, level, True, over) < 0.0:
            continue
        for i in range(stop - first):
            if over[i] < 0.0 or first + i == column:
                continue
            score = z[first + i] - temperature * math.log(-math.log(_uniform(words, i)))
            if score > best:
                best, runner_up, column = score, best, first + i
            elif score > runner_up:
                runner_up = score
    # Both forms of the score are right to about 1e-15 of the numbers that they are made of.
    is_close = not best - runner_up > 1e-11 * size
    if is_close or abs(best) > 650 or abs(top) > 650 or temperature > 20:
        column = UNDECIDED
    return column, total, weighted


@compiled()
def _draw_softmax(p: Any, key: Any, scratch: Any, words: Any, over: Any) -> int:
    """The column that the definition of Proposal.SOFTMAX chooses, or UNDECIDED.

    Args:
        p: float32 [K], probabilities.
        key: see `_words`.
        scratch: float64 [3, CHUNK].
        words: uint32 [4, CHUNK // 4].
        over: float32 [CHUNK].
    """
    num_columns = len(p)
    best, runner_up, column = 0.0, 0.0, UNDECIDED
    for first in range(0, num_columns, CHUNK):
        stop = min(first + CHUNK, num_columns)
        _words(first // 4, (stop - first + 3) // 4, key, words)
        for i in range(stop - first):
            scratch[1, i] = p[first + i]
        if _over(scratch, words, stop - first, best * (1.0 - 1e-5), False, over) < 0.0:
            continue
        for i in range(stop - first):
            if over[i] < 0.0:
                continue
            score = scratch[1, i] / -math.log1p(-_uniform(words, i))
            if score > best:
                best, runner_up, column = score, best, first + i
            elif score > runner_up:
                runner_up = score
    # The definition rounds p, the draw and their quotient to float32, each to about 1e-7.
    return column if runner_up < best * (1.0 - 1e-6) and best > 1e-20 else UNDECIDED


@compiled()
def _rows(
    z: Any,
    p: Any,
    p_row: Any,
    mode: Any,
    temperature: Any,
    keys: Any,
    first: int,
    stop: int,
    column: Any,
    out: Any,
) -> None:
    """Statistics of rows `first .. stop`.

    Args:
        z: float32 [R, K], guided, forbidden columns at -inf; divided by the temperature in mode
            SOFTMAX.
        p: float32 [P, K], softmax of the rows of mode SOFTMAX.
        p_row: int64 [R], row of `p`.
        mode: int64 [R], `Proposal`, or -1: a row of no request.
        temperature: float64 [R].
        keys: uint64 [R, 5], see `_words`.
        first: first row.
        stop: row behind the last.
        column: int64 [R], written.
        out: float64 [3, R], written: log-sum-exp, margin, entropy.
    """
    scratch, over = np.zeros((3, CHUNK)), np.zeros(CHUNK, np.float32)
    words = np.zeros((4, CHUNK // 4), np.uint32)
    num_columns = z.shape[1]
    tops = np.empty((num_columns + CHUNK - 1) // CHUNK, np.int32)
    for row in range(first, stop):
        if mode[row] < 0:
            continue
        chosen, second, is_finite = _largest(z[row], tops)
        top = np.float64(z[row, chosen])
        if not is_finite or top == -np.inf:
            column[row] = UNDECIDED
            continue
        if mode[row] == GUMBEL:
            chosen, total, weighted = _draw_gumbel(
                z[row], chosen, temperature[row], keys[row], scratch, words, over
            )
        else:
            total, weighted = 0.0, 0.0
            for start in range(0, num_columns, CHUNK):
                end = min(start + CHUNK, num_columns)
                _exponentials(z[row], start, end, top, 1.0, scratch)
                of_chunk = _sums(scratch[0], scratch[1], end - start)
                total += of_chunk[0]
                weighted += of_chunk[1]
        if mode[row] == SOFTMAX:
            chosen = _draw_softmax(p[p_row[row]], keys[row], scratch, words, over)
        log_total = math.log(total)
        lse = top + log_total
        column[row] = chosen
        out[0, row] = lse
        out[1, row] = math.exp(top - lse) - math.exp(second - lse)
        out[2, row] = log_total - weighted / total


def row_statistics_cpu(rows: RowInputs) -> RowStatistics:
    """See `row_statistics`; tensors on the CPU."""
    num_rows = len(rows.request_R)
    request = rows.request_R.numpy()
    table = rows.table_BC.numpy()[np.maximum(request, 0)]
    mode = np.where(request < 0, -1, table[:, Column.PROPOSAL])
    temperature = table.view(np.float64)[:, Column.TEMPERATURE]
    logits_RK = guided_logits(rows).float().contiguous()
    probabilities, p_row = np.empty((0, 1), np.float32), np.zeros(num_rows, np.int64)
    of_softmax = np.flatnonzero(mode >= int(Proposal.SOFTMAX_ARGMAX))
    if len(of_softmax):
        logits_RK, probabilities = _softmax(logits_RK, of_softmax, mode, temperature)
        p_row[of_softmax] = np.arange(len(of_softmax))
    column, out = np.zeros(num_rows, np.int64), np.zeros((3, num_rows))
    place = (logits_RK.numpy(), probabilities, p_row, mode, temperature, _keys(rows, table))
    _in_threads(place, column, out)

    undecided = np.flatnonzero(column == UNDECIDED)
    if rows.given_R is not None:
        given = rows.given_R.numpy()
        column = np.where((given >= 0) & (mode >= 0), given, column)
    every = np.arange(num_rows)
    safe = np.maximum(column, 0)
    probability = np.exp(logits_RK.numpy()[every, safe].astype(np.float64) - out[0])
    probability[mode < 0] = 0.0
    probability[of_softmax] = probabilities[p_row[of_softmax], safe[of_softmax]]
    found = RowStatistics(
        column=torch.from_numpy(column),
        probability=torch.from_numpy(probability),
        logsumexp=torch.from_numpy(out[0]),
        margin=torch.from_numpy(out[1]),
        entropy=torch.from_numpy(out[2]),
        flags=torch.zeros(num_rows, dtype=torch.int32),
    )
    if len(undecided):
        _by_definition(rows, torch.from_numpy(undecided), found)
    return found


def _softmax(
    logits_RK: Tensor, of_softmax: NDArray[Any], mode: NDArray[Any], temperature: NDArray[Any]
) -> tuple[Tensor, NDArray[Any]]:
    """The logits, divided by the temperature in mode SOFTMAX, and the softmax of some rows."""
    divisor = np.where(mode == SOFTMAX, np.maximum(temperature, 1e-5), 1.0)
    if (divisor != 1).any():
        logits_RK = logits_RK / torch.from_numpy(divisor).float()[:, None]
    part = logits_RK
    if len(of_softmax) < len(mode):
        part = logits_RK[torch.from_numpy(of_softmax)]
    return logits_RK, part.softmax(-1).numpy()


def _keys(rows: RowInputs, table: NDArray[Any]) -> NDArray[Any]:
    keys = np.empty((len(table), 5), np.uint64)
    seeds = table[:, Column.SEED].view(np.uint64)
    keys[:, 0], keys[:, 1] = seeds & np.uint64(0xFFFFFFFF), seeds >> np.uint64(32)
    keys[:, 2] = rows.slot_R.numpy()
    keys[:, 3], keys[:, 4] = table[:, Column.STEP], table[:, Column.PLACE]
    return keys


def _in_threads(place: tuple[Any, ...], column: NDArray[Any], out: NDArray[Any]) -> None:
    """Cut the rows among as many threads as PyTorch uses."""
    logits = place[0]
    num_threads = min(torch.get_num_threads(), len(logits)) if logits.size > 1 << 17 else 1
    if num_threads <= 1:
        _rows(*place, 0, len(logits), column, out)
        return
    ends = [len(logits) * part // num_threads for part in range(num_threads + 1)]
    parts = list(pairwise(ends))
    jobs: list[tuple[Any, ...]] = [(*place, *part, column, out) for part in parts]
    others = [_pool(os.getpid()).submit(_rows, *job) for job in jobs[1:]]
    _rows(*jobs[0])
    for other in others:
        other.result()


@cache
def _pool(process: int) -> Any:
    """Threads of this process: those of the one that it was forked from are not in it."""
    return ThreadPoolExecutor(thread_name_prefix="row-statistics")


def _by_definition(rows: RowInputs, index: Tensor, found: RowStatistics) -> None:
    """Write what the definition says of some rows."""
    part = replace(
        rows,
        logits_RK=rows.logits_RK[index],
        request_R=rows.request_R[index],
        slot_R=rows.slot_R[index],
        pair_R=None if rows.pair_R is None else rows.pair_R[index],
        given_R=None if rows.given_R is None else rows.given_R[index],
    )
    defined = row_statistics_ref(part)
    for field in fields(RowStatistics):
        getattr(found, field.name)[index] = getattr(defined, field.name)
