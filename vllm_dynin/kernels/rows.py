"""What is proposed at each row of logits and how sure that is: the data, and the definition.

Shape suffixes: R rows of logits, K columns, U rows of the second stream, B requests, C columns of
the step table (`step_table`), P parts that the columns were cut into.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntFlag

import torch
from torch import Tensor

from vllm_dynin.kernels.philox import philox_uniform_rows
from vllm_dynin.kernels.step_table import Column, Guidance, Proposal, real, whole

ALL_PROPOSALS = frozenset(Proposal)
PARTIAL_WORDS = 4


class RowFlag(IntFlag):
    """What is wrong with a row."""

    NOT_FINITE = 1
    """It has a NaN or +inf."""
    EMPTY = 2
    """No column of it is allowed: all are -inf."""


@dataclass(frozen=True)
class RowStatistics:
    """One entry per row; rows of no request and rows with a flag have zeros.

    Args:
        column: int64 [R], the proposal. Ties: the lower column.
        probability: float64 [R] in [0, 1], of the proposal; in the SOFTMAX modes a float32 value.
        logsumexp: float64 [R], of the logits that the probability is taken from: the clean ones,
            in the SOFTMAX modes those divided by the temperature.
        margin: float64 [R], probability of the most likely column less that of the second.
        entropy: float64 [R], of the same softmax, in nats.
        flags: int32 [R], bits of `RowFlag`.
    """

    column: Tensor
    probability: Tensor
    logsumexp: Tensor
    margin: Tensor
    entropy: Tensor
    flags: Tensor


@dataclass(frozen=True)
class RowInputs:
    """Rows of logits of any number of requests over the same columns.

    Args:
        logits_RK: bfloat16, float16 or float32; the conditional stream. Not modified.
        table_BC: int64, the step table.
        request_R: int64, row of the table that each row of logits belongs to; -1 for none.
        slot_R: int64, slot of the canvas of each row.
        unconditional_UK: logits of the second stream in the same dtype, or None.
        pair_R: int64, row of `unconditional_UK` of each row, -1 for none; None without one.
        forbidden_K: bool, columns that are never proposed and count as -inf; None for none.
        given_R: int64, column of rows that are not proposed for but asked for the probability of
            this one (slots that are decided); -1 for others; None for none.
        first_column: of this tile among the columns that the draws are numbered by: above 0 on the
            second and later ranks of a vocabulary-parallel head.
        proposals: the modes that occur in the table, where the host knows them. (No kernel needs
            it; the definition leaves out the work of the others.)
    """

    logits_RK: Tensor
    table_BC: Tensor
    request_R: Tensor
    slot_R: Tensor
    unconditional_UK: Tensor | None = None
    pair_R: Tensor | None = None
    forbidden_K: Tensor | None = None
    given_R: Tensor | None = None
    first_column: int = 0
    proposals: Collection[Proposal] = ALL_PROPOSALS

    def __post_init__(self) -> None:
        assert (self.unconditional_UK is None) == (self.pair_R is None)


def row_statistics_ref(rows: RowInputs) -> RowStatistics:
    """The definition of `row_statistics` in plain PyTorch, on any device.

    Source: `propose` and `propose_sampled` of sampling/, for rows of many requests.
    """
    logits_RK = guided_logits(rows)
    is_softmax_R = _is_softmax(rows)
    scaled_RK = scaled_logits(logits_RK, rows)
    column_R = logits_RK.argmax(-1)
    if Proposal.GUMBEL in rows.proposals:
        score_RK = gumbel_scores(logits_RK, of_row(rows, Column.TEMPERATURE), uniform_draws(rows))
        column_R = torch.where(_is(rows, Proposal.GUMBEL), score_RK.argmax(-1), column_R)
    p_RK = None
    if {Proposal.SOFTMAX, Proposal.SOFTMAX_ARGMAX} & set(rows.proposals):
        p_RK = scaled_RK.float().softmax(-1)
    if Proposal.SOFTMAX in rows.proposals:
        assert p_RK is not None
        drawn_R = (p_RK / _exponential(rows)).argmax(-1)
        column_R = torch.where(_is(rows, Proposal.SOFTMAX), drawn_R, column_R)
    if rows.given_R is not None:
        column_R = torch.where(rows.given_R >= 0, rows.given_R, column_R)

    scaled_RK = scaled_RK.double()
    lse_R = scaled_RK.logsumexp(-1)
    probability_R = (_at(scaled_RK, column_R) - lse_R).exp()
    if p_RK is not None:
        probability_R = torch.where(is_softmax_R, _at(p_RK, column_R).double(), probability_R)
    top_R2 = (scaled_RK.topk(min(2, scaled_RK.shape[-1]), dim=-1).values - lse_R[:, None]).exp()
    margin_R = top_R2[:, 0] - top_R2[:, 1] if top_R2.shape[1] == 2 else top_R2[:, 0]
    shifted_RK = scaled_RK - lse_R[:, None]
    terms_RK = shifted_RK * shifted_RK.exp()
    entropy_R = -terms_RK.masked_fill_(scaled_RK == -torch.inf, 0.0).sum(-1)
    largest_R = scaled_RK.amax(-1)  # NaN where the row has one
    return finished(rows, column_R, probability_R, lse_R, margin_R, entropy_R, largest_R)


def finished(
    rows: RowInputs,
    column_R: Tensor,
    probability_R: Tensor,
    lse_R: Tensor,
    margin_R: Tensor,
    entropy_R: Tensor,
    largest_R: Tensor,
) -> RowStatistics:
    """Statistics with the flags worked in; `largest_R` is the largest logit or NaN."""
    is_row_R = rows.request_R >= 0
    is_bad_R = largest_R.isnan() | (largest_R == torch.inf)
    is_empty_R = largest_R == -torch.inf
    is_bad_R, is_empty_R = is_bad_R & is_row_R, is_empty_R & is_row_R
    drop_R = is_bad_R | is_empty_R | ~is_row_R
    return RowStatistics(
        column=column_R.masked_fill(drop_R, 0),
        probability=probability_R.masked_fill(drop_R, 0.0),
        logsumexp=lse_R.masked_fill(drop_R, 0.0),
        margin=margin_R.masked_fill(drop_R, 0.0),
        entropy=entropy_R.masked_fill(drop_R, 0.0),
        flags=(is_bad_R * int(RowFlag.NOT_FINITE) + is_empty_R * int(RowFlag.EMPTY)).int(),
    )


def gumbel_scores(logits_RK: Tensor, temperature: float | Tensor, uniform_RK: Tensor) -> Tensor:
    """Scores whose arg-max is a sample of softmax(logits / temperature).

    Args:
        logits_RK: any floating dtype.
        temperature: above 0; or float64 [R].
        uniform_RK: float64 uniform draws in (0, 1).

    Returns:
        float64 [R, K]: `exp(logit) / (-ln u) ** temperature`.

    Source: `add_gumbel_noise` of LLaDA / Dynin-Omni; float64 because lower precision measurably
    hurts generation (their comment, after arXiv 2409.02908).
    """
    if isinstance(temperature, Tensor):
        temperature = temperature[:, None]
    return logits_RK.double().exp() / (-uniform_RK.log()) ** temperature


def guided_logits(rows: RowInputs) -> Tensor:
    """Logits [R, K] of both streams combined, in their dtype, forbidden columns at -inf.

    Every operation rounds to that dtype, as those of `sampling.guidance.guide` do.
    """
    logits_RK = rows.logits_RK
    if rows.unconditional_UK is not None and rows.unconditional_UK.shape[0]:
        assert rows.pair_R is not None
        dtype = logits_RK.dtype
        scale_R1 = of_row(rows, Column.GUIDANCE_SCALE)[:, None]
        form_R1 = of_row(rows, Column.GUIDANCE)[:, None]
        other_RK = rows.unconditional_UK[rows.pair_R.clamp(min=0)].float()
        more_R1, scale_R1 = (1.0 + scale_R1).float(), scale_R1.float()
        plain_RK = logits_RK.float()
        step_RK = ((plain_RK - other_RK).to(dtype).float() * more_R1).to(dtype).float()
        delta_RK = (other_RK + step_RK).to(dtype)
        weighted_RK = (plain_RK * more_R1).to(dtype).float() - (other_RK * scale_R1).to(
            dtype
        ).float()
        guided_RK = torch.where(form_R1 == Guidance.DELTA, delta_RK, weighted_RK.to(dtype))
        is_guided_R1 = (rows.pair_R[:, None] >= 0) & (form_R1 != Guidance.OFF)
        logits_RK = torch.where(is_guided_R1, guided_RK, logits_RK)
    if rows.forbidden_K is not None:
        logits_RK = logits_RK.masked_fill(rows.forbidden_K, -torch.inf)
    return logits_RK


def scaled_logits(logits_RK: Tensor, rows: RowInputs) -> Tensor:
    """The logits whose softmax counts: float32 divided by the temperature in mode SOFTMAX."""
    if Proposal.SOFTMAX not in rows.proposals:
        return logits_RK
    temperature_R = of_row(rows, Column.TEMPERATURE).clamp(min=1e-5).float()
    divisor_R = torch.where(_is(rows, Proposal.SOFTMAX), temperature_R, 1.0)
    return logits_RK.float() / divisor_R[:, None]


def uniform_draws(rows: RowInputs) -> Tensor:
    """The draws of the proposals, float64 [R, K] in (0, 1)."""
    return philox_uniform_rows(
        rows.slot_R,
        rows.first_column,
        rows.logits_RK.shape[1],
        seeds_R=of_row(rows, Column.SEED),
        steps_R=of_row(rows, Column.STEP),
        places_R=of_row(rows, Column.PLACE),
    )


def _exponential(rows: RowInputs) -> Tensor:
    """float32 draws of Exp(1), at least 2**-33, may be inf."""
    return uniform_draws(rows).float().neg_().log1p_().neg_()


def of_row(rows: RowInputs, column: Column) -> Tensor:
    """A column of the table for each row; rows of no request read the first."""
    values_B = real(rows.table_BC, column) if column >= 24 else whole(rows.table_BC, column)
    return values_B[rows.request_R.clamp(min=0)]


def _is(rows: RowInputs, proposal: Proposal) -> Tensor:
    return of_row(rows, Column.PROPOSAL) == proposal


def _is_softmax(rows: RowInputs) -> Tensor:
    return of_row(rows, Column.PROPOSAL) >= Proposal.SOFTMAX_ARGMAX


def _at(values_RK: Tensor, column_R: Tensor) -> Tensor:
    return values_RK.gather(-1, column_R[:, None])[:, 0]
