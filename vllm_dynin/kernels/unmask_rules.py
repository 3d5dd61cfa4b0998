"""Which proposals a step keeps, masks again or revokes: the data, and the definition.

Shape suffixes: B requests, S canvases of N slots, W slots of the widest window, R rows of this
step, Q rows reserved for the next, C columns of the step table (`step_table`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_dynin.kernels.philox import philox_uniform_rows
from vllm_dynin.kernels.step_table import (
    BLOCK_BITS,
    REGION_BITS,
    Column,
    Ranking,
    Rule,
    SlotState,
    Use,
    real,
    whole,
)

ONE = 1 << 40
"""A probability of 1, or an entropy of 1 nat, in the whole numbers that the rules add up: sums are
then the same in any order, so that every device decides alike."""
RANKING_PLACE = int(Use.RANKING) << (BLOCK_BITS + REGION_BITS)
ALL_RULES, ALL_RANKINGS = frozenset(Rule), frozenset(Ranking)


@dataclass(frozen=True)
class Canvases:
    """State on the device, written in place.

    Args:
        ids_SN: int32 or int64, a canvas per row.
        state_SN: uint8, `SlotState`.
    """

    ids_SN: Tensor
    state_SN: Tensor


@dataclass(frozen=True)
class Candidates:
    """What the rows of this step say about their slots; none is modified.

    Args:
        request_R: int64, row of the table, -1 for none.
        slot_R: int64, slot of the canvas, inside the request's window.
        token_R: int64 ids. Of masked slots the proposals; of decided slots it is not read.
        score_R: float64, what RANKING.CONFIDENCE ranks by: probability, margin, or entropy negated.
            None for the confidence.
        confidence_R: float64 in [0, 1]: probability of the proposal, or of the decided token.
        entropy_R: float64 in nats; None where no request has Rule.ENTROPY.
    """

    request_R: Tensor
    slot_R: Tensor
    token_R: Tensor
    confidence_R: Tensor
    score_R: Tensor | None = None
    entropy_R: Tensor | None = None


@dataclass(frozen=True)
class NextRows:
    """Where `unmask` writes what the next step works on; all of it is overwritten.

    Args:
        request_Q: int64, row of the table each row belongs to, -1 where none.
        slot_Q: int64, its slot, 0 where none. The rows of a request are the open slots of its
            window, ascending, from `FIRST_ROW` on: the masked ones, and the decided ones where
            `REVOKE_MAX` is above 0.
        num_rows_B: int32, rows of each request.
        num_masked_B: int32, masks left in the window of this step; 0: it is done.
        num_decided_B: int32, slots that this step decided.
        num_revoked_B: int32, slots that it masked again.
        committed_B: int32, slots of the canvas from the first on that are final.
    """

    request_Q: Tensor
    slot_Q: Tensor
    num_rows_B: Tensor
    num_masked_B: Tensor
    num_decided_B: Tensor
    num_revoked_B: Tensor
    committed_B: Tensor

    @classmethod
    def empty(cls, num_requests: int, num_rows: int, device: torch.device) -> NextRows:
        """Storage for B requests and Q rows."""
        counts = torch.zeros(5, num_requests, dtype=torch.int32, device=device)
        return cls(
            torch.full((num_rows,), -1, dtype=torch.int64, device=device),
            torch.zeros(num_rows, dtype=torch.int64, device=device),
            *counts,
        )


def unmask_ref(
    canvases: Canvases,
    table_BC: Tensor,
    candidates: Candidates,
    following: NextRows | None,
    *,
    width: int,
    rules: Collection[Rule] = ALL_RULES,
    rankings: Collection[Ranking] = ALL_RANKINGS,
    revokes: bool = True,
) -> None:
    """The definition of `unmask` in plain PyTorch, on any device."""
    owner_B = whole(table_BC, Column.CANVAS)
    window = _Window(
        canvases, owner_B, whole(table_BC, Column.START), whole(table_BC, Column.STOP), width
    )
    state_BW = window.read(canvases.state_SN)
    row_BW = _row_of_slot(candidates, table_BC, width)
    has_row_BW = (row_BW >= 0) & window.is_inside_BW
    row_BW = row_BW.clamp(min=0)
    is_open_BW = has_row_BW & (state_BW == SlotState.MASKED)
    confidence_BW = _spread(candidates.confidence_R, row_BW)
    order_BW = _order(table_BC, candidates, row_BW, is_open_BW, rankings)
    num_open_B = is_open_BW.sum(1)
    num_kept_B = _num_kept(table_BC, candidates, row_BW, order_BW, is_open_BW, rules)
    is_remask_B = whole(table_BC, Column.RULE) == Rule.REMASK
    first_B = torch.where(is_remask_B, num_open_B - num_kept_B, 0)
    place_W = torch.arange(width, device=order_BW.device)
    is_kept_BW = (place_W >= first_B[:, None]) & (place_W < (first_B + num_kept_B)[:, None])
    is_decided_BW = torch.zeros_like(is_open_BW).scatter_(1, order_BW, is_kept_BW)

    token_BW = _spread(candidates.token_R, row_BW).to(canvases.ids_SN.dtype)
    ids_BW = torch.where(is_decided_BW, token_BW, window.read(canvases.ids_SN))
    if revokes:
        is_revoked_BW = has_row_BW & (state_BW == SlotState.DECIDED)
        is_revoked_BW = _revoked(table_BC, is_revoked_BW, confidence_BW, num_kept_B)
        mask_B1 = whole(table_BC, Column.MASK_ID)[:, None].to(ids_BW.dtype)
        ids_BW = torch.where(is_revoked_BW, mask_B1, ids_BW)
        state_BW = torch.where(is_revoked_BW, int(SlotState.MASKED), state_BW)
        if following is not None:
            following.num_revoked_B.copy_(is_revoked_BW.sum(1))
    elif following is not None:
        following.num_revoked_B.zero_()
    state_BW = torch.where(is_decided_BW, int(SlotState.DECIDED), state_BW)
    window.write(canvases.ids_SN, ids_BW)
    window.write(canvases.state_SN, state_BW)
    if following is None:
        return
    following.num_decided_B.copy_(num_kept_B)
    num_masked_B = ((state_BW == SlotState.MASKED) & window.is_inside_BW).sum(1)
    following.num_masked_B.copy_(num_masked_B)
    _write_following(canvases, table_BC, following, width, num_masked_B == 0)


class _Window:
    """The slots START .. STOP of every request as a rectangle [B, W].

    What hangs over a window are other slots of the canvas, each once, so that writing back what was
    read there changes nothing.
    """

    def __init__(
        self, canvases: Canvases, owner_B: Tensor, start_B: Tensor, stop_B: Tensor, width: int
    ) -> None:
        num_slots = canvases.ids_SN.shape[1]
        assert width <= num_slots, (width, num_slots)
        slots_BW = start_B[:, None] + torch.arange(width, device=start_B.device)
        self.is_inside_BW = slots_BW < stop_B[:, None]
        self.slots_BW = slots_BW % num_slots
        self._flat_BW = owner_B[:, None] * num_slots + self.slots_BW

    def read(self, values_SN: Tensor) -> Tensor:
        return values_SN.view(-1)[self._flat_BW]

    def write(self, values_SN: Tensor, values_BW: Tensor) -> None:
        values_SN.view(-1)[self._flat_BW] = values_BW


def _row_of_slot(candidates: Candidates, table_BC: Tensor, width: int) -> Tensor:
    """int64 [B, W]: index of the row that speaks of a slot of the window, -1 for none."""
    num_requests, request_R = len(table_BC), candidates.request_R
    start_R = whole(table_BC, Column.START)[request_R.clamp(min=0)]
    offset_R = candidates.slot_R - start_R
    is_row_R = (request_R >= 0) & (offset_R >= 0) & (offset_R < width)
    nowhere = num_requests * width
    at_R = torch.where(is_row_R, request_R * width + offset_R, nowhere)
    rows = torch.full((nowhere + 1,), -1, dtype=torch.int64, device=at_R.device)
    rows[at_R] = torch.arange(len(at_R), device=at_R.device)
    return rows[:nowhere].view(num_requests, width)


def _spread(values_R: Tensor, row_BW: Tensor) -> Tensor:
    """The values of the rows at their slots; zeros where the step has no rows at all."""
    if not len(values_R):
        return values_R.new_zeros(row_BW.shape)
    return values_R[row_BW]


def _order(
    table_BC: Tensor,
    candidates: Candidates,
    row_BW: Tensor,
    is_open_BW: Tensor,
    rankings: Collection[Ranking],
) -> Tensor:
    """int64 [B, W]: slots of the window, open ones first, best first (REMASK: worst first)."""
    score_BW = _spread(row_scores(table_BC, candidates, rankings), row_BW)
    is_remask_B1 = (whole(table_BC, Column.RULE) == Rule.REMASK)[:, None]
    score_BW = torch.where(is_remask_B1, -score_BW, score_BW)
    score_BW = score_BW.masked_fill(~is_open_BW, -torch.inf)
    return torch.sort(score_BW, dim=1, descending=True, stable=True).indices


def noisy_scores(confidence: Tensor, scale: float | Tensor, uniform: Tensor) -> Tensor:
    """ln(confidence) + scale · Gumbel noise, in the dtype of the confidence.

    Args:
        confidence: floating in [0, 1], any shape.
        scale: 0 adds nothing.
        uniform: float64 draws in (0, 1); as many bits of them count as `torch.rand` has.

    Source: `mask_by_random_topk` of Dynin-Omni, `models/sampling.py`.
    """
    score = confidence.clamp(min=1e-20).log()
    uniform = as_rand(uniform, score.dtype)
    gumbel = -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()
    return score + scale * gumbel


_DIGITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}


def as_rand(uniform: Tensor, dtype: torch.dtype) -> Tensor:
    """Draws in [0, 1) of as many bits as `torch.rand` has in a dtype, from float64 ones."""
    if dtype in _DIGITS:
        scale = 2.0 ** _DIGITS[dtype]
        uniform = (uniform * scale).floor() / scale
    return uniform.to(dtype)


def row_scores(table_BC: Tensor, candidates: Candidates, rankings: Collection[Ranking]) -> Tensor:
    """float64 [R]: what the slots are ranked by."""
    confidence_R = candidates.confidence_R
    score_R = confidence_R if candidates.score_R is None else candidates.score_R
    if not {Ranking.RANDOM, Ranking.NOISE} & set(rankings):
        return score_R
    of_R = candidates.request_R.clamp(min=0)
    uniform_R = philox_uniform_rows(
        candidates.slot_R,
        0,
        1,
        seeds_R=whole(table_BC, Column.SEED)[of_R],
        steps_R=whole(table_BC, Column.STEP)[of_R],
        places_R=whole(table_BC, Column.PLACE)[of_R] | RANKING_PLACE,
    )[:, 0]
    ranking_R = whole(table_BC, Column.RANKING)[of_R]
    score_R = torch.where(ranking_R == Ranking.RANDOM, uniform_R, score_R)
    scale_R = real(table_BC, Column.NOISE_SCALE)[of_R].float()
    noisy_R = noisy_scores(confidence_R.float(), scale_R, uniform_R).double()
    return torch.where(ranking_R == Ranking.NOISE, noisy_R, score_R)


def _num_kept(
    table_BC: Tensor,
    candidates: Candidates,
    row_BW: Tensor,
    order_BW: Tensor,
    is_open_BW: Tensor,
    rules: Collection[Rule],
) -> Tensor:
    """int64 [B]: how many open slots the rule of each request decides."""
    rule_B, num_open_B = whole(table_BC, Column.RULE), is_open_BW.sum(1)
    count_B = whole(table_BC, Column.COUNT)
    kept_B = torch.where(rule_B == Rule.REMASK, num_open_B - count_B, count_B)
    bound_B = real(table_BC, Column.PARAMETER)
    confidence_BW = _spread(candidates.confidence_R, row_BW)
    if Rule.THRESHOLD in rules:
        found_B = (is_open_BW & (confidence_BW >= bound_B[:, None])).sum(1)
        kept_B = torch.where(rule_B == Rule.THRESHOLD, found_B, kept_B)
    if {Rule.FACTOR, Rule.FRECHET, Rule.ENTROPY} & set(rules):
        bound_B1 = (bound_B.clamp(-1e6, 1e6) * ONE).round().to(torch.int64)[:, None]
        n_W = torch.arange(1, order_BW.shape[1] + 1, device=order_BW.device)
        is_open_BW = n_W <= num_open_B[:, None]  # in order
        c_BW = (confidence_BW.gather(1, order_BW) * ONE).round().to(torch.int64)
        c_BW = c_BW.masked_fill(~is_open_BW, 0)
        kept_B = _largest(
            rule_B == Rule.FACTOR, (n_W + 1) * (ONE - c_BW) < bound_B1, kept_B, n_W, is_open_BW
        )
        lower_BW = (c_BW.cumsum(1) - (n_W - 1) * ONE).clamp(min=0)
        kept_B = _largest(
            rule_B == Rule.FRECHET, lower_BW - (ONE - c_BW) > bound_B1, kept_B, n_W, is_open_BW
        )
        if candidates.entropy_R is not None:
            h_BW = _spread(candidates.entropy_R, row_BW).gather(1, order_BW)
            h_BW = (h_BW * ONE).round().to(torch.int64).masked_fill(~is_open_BW, 0)
            rest_BW = h_BW.cumsum(1) - h_BW.cummax(1).values
            kept_B = _largest(rule_B == Rule.ENTROPY, rest_BW <= bound_B1, kept_B, n_W, is_open_BW)
    kept_B = torch.maximum(kept_B, whole(table_BC, Column.MIN))
    kept_B = torch.minimum(kept_B, whole(table_BC, Column.MAX))
    return torch.minimum(kept_B, num_open_B).clamp(min=0)


def _largest(
    is_rule_B: Tensor, holds_BW: Tensor, kept_B: Tensor, n_W: Tensor, is_open_BW: Tensor
) -> Tensor:
    """The largest n for which a rule's condition holds, where the rule is that one."""
    found_B = torch.where(holds_BW & is_open_BW, n_W, 0).amax(1)
    return torch.where(is_rule_B, found_B, kept_B)


def _revoked(
    table_BC: Tensor, is_decided_BW: Tensor, confidence_BW: Tensor, num_kept_B: Tensor
) -> Tensor:
    """Which slots decided by earlier steps are masked again: bool [B, W]."""
    below_B1 = real(table_BC, Column.REVOKE_BELOW)[:, None]
    is_bad_BW = is_decided_BW & (confidence_BW < below_B1)
    most_B = torch.minimum(whole(table_BC, Column.REVOKE_MAX), num_kept_B - 1).clamp(min=0)
    key_BW = confidence_BW.masked_fill(~is_bad_BW, torch.inf)
    order_BW = torch.sort(key_BW, dim=1, stable=True).indices
    place_W = torch.arange(order_BW.shape[1], device=order_BW.device)
    is_first_BW = (place_W < most_B[:, None]).expand_as(order_BW)
    return torch.zeros_like(is_bad_BW).scatter_(1, order_BW, is_first_BW) & is_bad_BW


def _write_following(
    canvases: Canvases, table_BC: Tensor, following: NextRows, width: int, is_done_B: Tensor
) -> None:
    """The rows of the next step and the committed counts."""

    def chosen(done: Column, otherwise: Column) -> Tensor:
        return torch.where(is_done_B, whole(table_BC, done), whole(table_BC, otherwise))

    committed_B = chosen(Column.COMMITTED_DONE, Column.COMMITTED_OPEN)
    following.committed_B.copy_(committed_B)
    start_B = chosen(Column.NEXT_START, Column.START)
    stop_B = chosen(Column.NEXT_STOP, Column.STOP)
    window = _Window(canvases, whole(table_BC, Column.CANVAS), start_B, stop_B, width)
    state_BW = window.read(canvases.state_SN)
    revokes_B1 = (whole(table_BC, Column.REVOKE_MAX) > 0)[:, None]
    is_open_BW = (state_BW == SlotState.MASKED) | (state_BW == SlotState.DECIDED) & revokes_B1
    is_open_BW = is_open_BW & window.is_inside_BW
    index_BW = is_open_BW.cumsum(1) - 1
    most_B1 = whole(table_BC, Column.NUM_ROWS)[:, None]
    is_row_BW = is_open_BW & (index_BW < most_B1)
    following.num_rows_B.copy_(is_row_BW.sum(1))
    nowhere = len(following.slot_Q)
    first_B1 = whole(table_BC, Column.FIRST_ROW)[:, None]
    at_BW = torch.where(is_row_BW, first_B1 + index_BW, nowhere).clamp(max=nowhere).flatten()
    request_B = torch.arange(len(start_B), device=start_B.device)
    request_BW = request_B[:, None].expand_as(is_row_BW)
    for out_Q, values_BW, otherwise in (
        (following.request_Q, request_BW, -1),
        (following.slot_Q, window.slots_BW, 0),
    ):
        rows = out_Q.new_full((nowhere + 1,), otherwise)
        rows[at_BW] = values_BW.reshape(-1)
        out_Q.copy_(rows[:nowhere])
