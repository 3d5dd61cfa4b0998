"""Algorithm B: image decoding, all slots at once.

At each denoising step a code is proposed at every masked slot; the least confident proposals are
masked again and the others stay. How many stay follows a schedule, and noise that dies down over
the steps is added to the confidence. The last step keeps every proposal.

Source: `t2i_generate`, `i2i_generate` and `mask_by_random_topk` of Dynin-Omni (after MaskGIT).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from vllm_dynin.canvas import Parity
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.logprobs import RowLogprobs
from vllm_dynin.sampling.noise import SlotDraws, StepDraws
from vllm_dynin.sampling.proposals import propose_sampled
from vllm_dynin.sampling.schedules import mask_ratio
from vllm_dynin.sampling.tiles import LogitRows, propose_in_tiles


@dataclass(frozen=True, kw_only=True)
class MaskGitOptions:
    """How an image region is decoded.

    Args:
        num_steps: denoising steps, at least 1.
        schedule: a schedule of `mask_ratio`.
        temperature: scale of the confidence noise at the start. Codes are sampled from the plain
            softmax whatever its value, except that 0 is greedy in `default` parity: arg-max
            proposals and no noise. (`reference`: 0 removes the noise only.)
        parity: which arithmetic, counts and ties.
        seed: of the request.
        num_logprobs: alternatives to keep for each code, None for no log-probabilities.

    Raises:
        ValueError: the schedule is unknown.
    """

    num_steps: int
    schedule: str = "cosine"
    temperature: float = 1.0
    parity: Parity = Parity.DEFAULT
    seed: int = 0
    num_logprobs: int | None = None

    def __post_init__(self) -> None:
        mask_ratio(self.schedule, torch.tensor(0.0))  # refuses an unknown name

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is random."""
        return self.temperature == 0 and self.parity is Parity.DEFAULT


@cache
def scheduled_mask_count(num_slots: int, step: int, num_steps: int, schedule: str) -> int:
    """Slots the schedule wants masked after a step: `floor(num_slots · γ((step + 1) / num_steps))`.

    In float32, as the original computes it: 1,024 slots at step 11 of 18 give 511 where exact
    arithmetic gives 512. May be -1 at the last step.

    Args:
        num_slots: slots the schedule is spread over.
        step: from 0.
        num_steps: steps in all.
        schedule: see `mask_ratio`.
    """
    ratio = mask_ratio(schedule, torch.tensor((step + 1) / num_steps, dtype=torch.float32))
    return int((num_slots * ratio).floor())


def num_to_remask(num_masked: int, num_scheduled: int, parity: Parity) -> int:
    """Proposals to mask again after a step that is not the last.

    Args:
        num_masked: masked slots before the step, at least 1.
        num_scheduled: what the schedule wants masked.
        parity: `reference` leaves at least one masked to the end and proposes it anew at every
            step; `default` keeps it, which ends the request and draws from the same distribution.

    Returns:
        At least one proposal is kept, except for the last slot in `reference`.
    """
    count = max(1, min(num_masked - 1, num_scheduled))
    return count if parity is Parity.REFERENCE else min(count, num_masked - 1)


def noise_scale(step: int, num_steps: int, temperature: float) -> float:
    """Scale of the confidence noise at a step: the temperature times `∏ (1 - j / num_steps)`.

    PARITY: the product runs over all steps up to this one, because the original reassigns its
    temperature inside the loop. It is 0 at the last step.

    Args:
        step: from 0.
        num_steps: steps in all.
        temperature: scale at the start.
    """
    scale = temperature
    for index in range(step + 1):
        scale *= 1.0 - (index + 1) / num_steps
    return scale


def select_to_remask(
    confidence_R: Tensor,
    num: int,
    *,
    scale: float,
    parity: Parity,
    draws: SlotDraws | None,
) -> Tensor:
    """Mark the least confident proposals, after noise.

    Args:
        confidence_R: floating [R] in [0, 1]; not modified.
        num: proposals to mark, in 1 .. R.
        scale: of the Gumbel noise on the logarithm of the confidence; 0 draws nothing.
        parity: `default` marks exactly `num` (ties: the lower row); `reference` marks what is
            below the num-th smallest value, hence fewer where values tie, all of them in the
            dtype of the confidence.
        draws: of the slots the rows belong to; may be None without noise.

    Returns:
        bool [R], True where the proposal is to be masked again.

    Source: `mask_by_random_topk` of Dynin-Omni, `models/sampling.py`.
    """
    score_R = confidence_R.clamp(min=1e-20).log()
    if scale > 0:
        assert draws is not None
        uniform_R = draws.ranking(score_R.dtype)
        gumbel_R = -(-uniform_R.clamp(min=1e-20).log()).clamp(min=1e-20).log()
        score_R = score_R + scale * gumbel_R
    ordered = torch.sort(score_R, stable=True)
    if parity is Parity.REFERENCE:
        # Rows decided earlier rank above all others, so beyond the last row everything is below.
        if num >= score_R.shape[0]:
            return torch.ones_like(score_R, dtype=torch.bool)
        return score_R < ordered.values[num]
    marked_R = torch.zeros_like(score_R, dtype=torch.bool)
    marked_R[ordered.indices[:num]] = True
    return marked_R


class MaskGitDecoder:
    """Progress of one image region through Algorithm B.

    Known codes (infilling) are never proposed for. In `default` parity the schedule is spread over
    the slots to be generated, in `reference` over all slots of the region.

    Args:
        ids: int64 [N] canvas of the request on its device; slots `start..stop` of it are the
            region, written in place as codes are kept.
        start: first slot of the region.
        stop: slot behind the region.
        mask_id: what a masked slot holds.
        columns: allowed ids.
        options: see `MaskGitOptions`.
        region: index of the region in its canvas, part of the key of the draws.
    """

    def __init__(
        self,
        ids: Tensor,
        start: int,
        stop: int,
        *,
        mask_id: int,
        columns: Columns,
        options: MaskGitOptions,
        region: int = 0,
    ) -> None:
        self.columns, self.num_committed = columns, start
        self.logprobs: RowLogprobs | None = None
        if options.num_logprobs is not None:
            self.logprobs = RowLogprobs.empty(stop - start, options.num_logprobs, ids.device)
        self._ids, self._start, self._stop = ids, start, stop
        self._mask_id, self._options, self._region = mask_id, options, region
        self._column_ids = columns.ids(ids.device)
        self._num_masked = int((ids[start:stop] == mask_id).sum())
        is_reference = options.parity is Parity.REFERENCE
        self._num_scheduled = stop - start if is_reference else self._num_masked
        self._step = 0

    @property
    def finished(self) -> bool:
        """Whether every slot is decided."""
        return self.num_committed == self._stop

    def wanted(self) -> Tensor:
        """int64 slots whose logits the next step needs, ascending; not empty."""
        is_masked = self._ids[self._start : self._stop] == self._mask_id
        # The count is known on the host, so a stable sort finds the slots without a device sync.
        order = torch.sort(is_masked.to(torch.uint8), descending=True, stable=True).indices
        return order[: self._num_masked] + self._start

    def step(self, slots: Tensor, logits: LogitRows) -> None:
        """One denoising step.

        Args:
            slots: what `wanted` returned.
            logits: gives the guided logits of those rows; called for one tile after another.
        """
        options = self._options
        draws = self._draws()
        proposals = propose_in_tiles(
            slots,
            logits,
            self.columns,
            propose=partial(
                propose_sampled,
                temperature=0.0 if options.is_greedy else 1.0,
                parity=options.parity,
            ),
            draws=draws,
            logprobs=self.logprobs,
            start=self._start,
        )
        is_last = self._step == options.num_steps - 1
        num = 0
        if not is_last:
            wanted = scheduled_mask_count(
                self._num_scheduled, self._step, options.num_steps, options.schedule
            )
            num = num_to_remask(self._num_masked, wanted, options.parity)
        chosen = self._column_ids[proposals.column]
        if num:
            is_remasked = self._select(
                proposals.confidence, num, None if draws is None else draws.at(slots)
            )
            chosen = torch.where(is_remasked, self._mask_id, chosen)
            if options.parity is Parity.REFERENCE:  # ties may have marked fewer
                num = int(is_remasked.sum())
        self._ids[slots] = chosen
        self._num_masked = num
        self._step += 1
        if num == 0:
            self.num_committed = self._stop

    def _select(self, confidence_R: Tensor, num: int, draws: SlotDraws | None) -> Tensor:
        options = self._options
        return select_to_remask(
            confidence_R,
            num,
            scale=noise_scale(self._step, options.num_steps, options.temperature),
            parity=options.parity,
            draws=draws,
        )

    def _draws(self) -> StepDraws | None:
        if self._options.is_greedy:
            return None
        return StepDraws(self._options.seed, self._region, 0, self._step)
