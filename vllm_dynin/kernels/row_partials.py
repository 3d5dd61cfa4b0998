"""Row statistics of a part of the columns, and of all from the parts, in plain PyTorch.

The proposal of a part is compared with those of others by a score that does not depend on the
part: the definition's own in float64, or for SOFTMAX exp(z) / e in float64, z the logit less the
largest of the row. (The definition rounds p / e to float32 there; the two differ where two columns
agree to about 1e-7.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_dynin.kernels.philox import philox_uniform_groups
from vllm_dynin.kernels.rows import (
    RowInputs,
    RowStatistics,
    finished,
    guided_logits,
    gumbel_scores,
    of_row,
    scaled_logits,
    uniform_draws,
)
from vllm_dynin.kernels.step_table import Column, Proposal

_LOW = 0xFFFFFFFF


def row_partials_ref(rows: RowInputs) -> Tensor:
    """The definition of `row_partials`, on any device."""
    scaled_RK = scaled_logits(guided_logits(rows), rows).float()
    is_bad_RK = scaled_RK.isnan() | (scaled_RK == torch.inf)
    first_bad_R = is_bad_RK.to(torch.uint8).argmax(-1)
    is_bad_R = is_bad_RK.any(-1)
    z_RK = scaled_RK.masked_fill(is_bad_RK, -torch.inf)
    most_R, most_at_R = z_RK.max(-1)
    z64_RK = z_RK.double()
    anchor_R = most_R.masked_fill(most_R == -torch.inf, 0.0).double()
    t_RK = z64_RK - anchor_R[:, None]
    e_RK = t_RK.exp()
    others_RK = e_RK.scatter(-1, most_at_R[:, None], 0.0)
    weighted_R = (t_RK * e_RK).masked_fill_(z_RK == -torch.inf, 0.0).sum(-1)
    second_R = z_RK.scatter(-1, most_at_R[:, None], -torch.inf).amax(-1)

    column_R, mode_R = z_RK.argmax(-1), of_row(rows, Column.PROPOSAL)
    if {Proposal.GUMBEL, Proposal.SOFTMAX} & set(rows.proposals):
        score_RK = _scores(z_RK, anchor_R[:, None], uniform_draws(rows), rows)
        is_drawn_R = (mode_R == Proposal.GUMBEL) | (mode_R == Proposal.SOFTMAX)
        column_R = torch.where(is_drawn_R, score_RK.argmax(-1), column_R)
    column_R = torch.where(is_bad_R, first_bad_R, column_R)
    width = z_RK.shape[1]
    if rows.given_R is not None:
        given_R = rows.given_R - rows.first_column
        is_here_R = (given_R >= 0) & (given_R < width)
        column_R = torch.where(
            (rows.given_R >= 0) & ~is_bad_R, torch.where(is_here_R, given_R, -1), column_R
        )
    value_R = z_RK.gather(-1, column_R.clamp(min=0)[:, None])[:, 0]
    value_R = value_R.masked_fill(column_R < 0, -torch.inf)
    column_R = torch.where(column_R < 0, -1, column_R + rows.first_column)
    most_R = most_R.masked_fill(is_bad_R, torch.nan)
    return torch.stack(
        [
            others_RK.sum(-1).view(torch.int64),
            weighted_R.view(torch.int64),
            _packed(most_R.view(torch.int32), second_R.view(torch.int32)),
            _packed(value_R.view(torch.int32), column_R),
        ],
        dim=-1,
    ).masked_fill((rows.request_R < 0)[:, None], 0)


def merge_partials_ref(parts_PR4: Tensor, rows: RowInputs) -> RowStatistics:
    """The definition of `merge_partials`, on any device."""
    rest_PR, weighted_PR = (parts_PR4[..., word].view(torch.float64) for word in (0, 1))
    most_PR, second_PR = _low(parts_PR4[..., 2]), _high(parts_PR4[..., 2]).view(torch.float32)
    value_PR, column_PR = _low(parts_PR4[..., 3]), _high(parts_PR4[..., 3]).to(torch.int64)
    is_bad_PR = most_PR.isnan()
    is_bad_R = is_bad_PR.any(0)
    most_PR = most_PR.masked_fill(is_bad_PR, -torch.inf)
    top_R, winner_R = most_PR.max(0)
    winner_R = (most_PR == top_R).to(torch.uint8).argmax(0)
    anchor_R = top_R.masked_fill(top_R == -torch.inf, 0.0).double()
    is_empty_PR = most_PR == -torch.inf
    shift_PR = (most_PR.double() - anchor_R).masked_fill(is_empty_PR, 0.0)
    fade_PR = shift_PR.exp().masked_fill(is_empty_PR, 0.0)
    is_winner_PR = torch.arange(len(parts_PR4), device=parts_PR4.device)[:, None] == winner_R
    total_R = (fade_PR * torch.where(is_winner_PR, rest_PR, rest_PR + 1)).sum(0)
    weighted_R = (fade_PR * (weighted_PR + shift_PR * (rest_PR + 1))).sum(0)
    second_PR = torch.maximum(second_PR, most_PR.masked_fill(is_winner_PR, -torch.inf))

    chosen_R = _chosen(value_PR, column_PR, anchor_R, rows)
    chosen_R = torch.where(is_bad_R, column_PR.masked_fill(~is_bad_PR, _LOW).amin(0), chosen_R)
    value_R = value_PR.masked_fill(column_PR != chosen_R, -torch.inf).amax(0).double()
    log_total_R = (1 + total_R).log()
    lse_R = anchor_R + log_total_R
    probability_R = (value_R - lse_R).exp()
    soft_R = ((value_R - anchor_R).exp() / (1 + total_R)).float().double()
    is_softmax_R = of_row(rows, Column.PROPOSAL) >= Proposal.SOFTMAX_ARGMAX
    margin_R = (anchor_R - lse_R).exp() - (second_PR.amax(0).double() - lse_R).exp()
    return finished(
        rows,
        chosen_R,
        torch.where(is_softmax_R, soft_R, probability_R),
        lse_R,
        margin_R,
        log_total_R - weighted_R / (1 + total_R),
        top_R.masked_fill(is_bad_R, torch.nan),
    )


def _chosen(value_PR: Tensor, column_PR: Tensor, anchor_R: Tensor, rows: RowInputs) -> Tensor:
    """The proposal of the best score; ties: the lowest column."""
    mode_R = of_row(rows, Column.PROPOSAL)
    score_PR = value_PR.double()
    if {Proposal.GUMBEL, Proposal.SOFTMAX} & set(rows.proposals):
        draws_PR = torch.stack([_draws(column_R, rows) for column_R in column_PR])
        drawn_PR = _scores(value_PR.T, anchor_R[:, None], draws_PR.T, rows).T
        is_drawn_R = (mode_R == Proposal.GUMBEL) | (mode_R == Proposal.SOFTMAX)
        score_PR = torch.where(is_drawn_R, drawn_PR, score_PR)
    if rows.given_R is not None:
        score_PR = torch.where(rows.given_R >= 0, 0.0, score_PR)
    is_here_PR = column_PR >= 0
    score_PR = score_PR.masked_fill(~is_here_PR, -torch.inf)
    is_best_PR = is_here_PR & (score_PR == score_PR.amax(0))
    return column_PR.masked_fill(~is_best_PR, _LOW).amin(0)


def _draws(column_R: Tensor, rows: RowInputs) -> Tensor:
    """float64 [R]: the draw of one column of each row."""
    column_R = column_R.clamp(min=0)
    group_R, word_R = column_R // 4, column_R % 4
    four_R4 = philox_uniform_groups(
        rows.slot_R,
        group_R[:, None],
        seeds_R=of_row(rows, Column.SEED),
        steps_R=of_row(rows, Column.STEP),
        places_R=of_row(rows, Column.PLACE),
    )
    return four_R4.gather(1, word_R[:, None])[:, 0]


def _scores(z_RK: Tensor, anchor_R1: Tensor, uniform_RK: Tensor, rows: RowInputs) -> Tensor:
    """float64 [R, K]: what the modes that draw compare columns of one row by."""
    gumbel_RK = gumbel_scores(z_RK, of_row(rows, Column.TEMPERATURE), uniform_RK)
    softmax_RK = (z_RK.double() - anchor_R1).exp() / -(-uniform_RK).log1p()
    is_softmax_R1 = (of_row(rows, Column.PROPOSAL) == Proposal.SOFTMAX)[:, None]
    return torch.where(is_softmax_R1, softmax_RK, gumbel_RK)


def _packed(low: Tensor, high: Tensor) -> Tensor:
    return low.to(torch.int64) & _LOW | high.to(torch.int64) << 32


def _low(words: Tensor) -> Tensor:
    return words.to(torch.int32).view(torch.float32)


def _high(words: Tensor) -> Tensor:
    return (words >> 32).to(torch.int32)
