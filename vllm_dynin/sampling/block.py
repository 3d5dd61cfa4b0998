"""Algorithm A: block-wise decoding of text, one denoising step at a time.

The blocks of a region are decoded left to right. At each step the model proposes a token at every
masked slot of the active block, and the most confident proposals are unmasked; they stay. Later
blocks are visible to the model as masks all the while.

Two drivers call this: the engine's sampler and the reference loop. Neither knows the algorithm.

Source: `mmu_generate` of Dynin-Omni (LLaDA's `generate`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.confidence import Remasking, propose
from vllm_dynin.sampling.logprobs import RowLogprobs
from vllm_dynin.sampling.noise import StepDraws
from vllm_dynin.sampling.policies import select_to_unmask
from vllm_dynin.sampling.schedules import BlockSpan, block_spans, transfer_counts
from vllm_dynin.sampling.tiles import LogitRows, propose_in_tiles


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """How a region is decoded by blocks.

    Args:
        block_length: tokens per block.
        num_steps: denoising steps over all blocks.
        temperature: 0 is arg-max.
        remasking: how masked slots are ranked.
        seed: of the request.
        num_logprobs: alternatives to keep for each token, None for no log-probabilities.
    """

    block_length: int
    num_steps: int
    temperature: float
    remasking: Remasking
    seed: int
    num_logprobs: int | None = None


class BlockDecoder:
    """Progress of one region through Algorithm A.

    Args:
        ids: int64 [N] canvas of the request on its device; slots `start..stop` of it are the
            region, written in place as they are unmasked.
        start: first slot of the region.
        stop: slot behind the region.
        mask_id: what a masked slot holds.
        columns: allowed ids.
        options: see `BlockOptions`.
        region: index of the region in its canvas, part of the key of the draws.
        done: slots of the region that are already committed, a multiple of the block length
            (a request that resumes after preemption).
        revisit: the original's behaviour of letting later blocks fill slots that were given the
            mask id itself.
    """

    def __init__(
        self,
        ids: Tensor,
        start: int,
        stop: int,
        *,
        mask_id: int,
        columns: Columns,
        options: BlockOptions,
        region: int = 0,
        done: int = 0,
        revisit: bool = False,
    ) -> None:
        self.columns, self.num_committed = columns, start + done
        self.logprobs: RowLogprobs | None = None
        if options.num_logprobs is not None:
            self.logprobs = RowLogprobs.empty(stop - start, options.num_logprobs, ids.device)
        self._ids, self._start, self._stop = ids, start, stop
        self._mask_id, self._options, self._region = mask_id, options, region
        self._revisit = revisit
        self._column_ids = columns.ids(ids.device)
        spans = block_spans(stop - start, options.block_length, options.num_steps)
        self._later = [span for span in spans if span.start >= done][::-1]
        self._num_blocks_done = -(-done // options.block_length)
        self._held = False  # a mask was left in an earlier block, so nothing more is committed yet
        self._enter_next_block()

    @property
    def finished(self) -> bool:
        """Whether every block is done."""
        return self._span is None

    def wanted(self) -> Tensor:
        """int64 slots whose logits the next step needs, ascending; not empty."""
        assert self._span is not None
        if self._revisit:
            window = self._ids[self._start : self._start + self._span.stop]
            return (window == self._mask_id).nonzero()[:, 0] + self._start
        # The count is known on the host, so a stable sort finds the slots without a device sync.
        first = self._start + self._span.start
        is_masked = self._ids[first : self._start + self._span.stop] == self._mask_id
        order = torch.sort(is_masked.to(torch.uint8), descending=True, stable=True).indices
        return order[: sum(self._counts[self._step :])] + first

    def step(self, slots: Tensor, logits: LogitRows) -> None:
        """One denoising step.

        Args:
            slots: what `wanted` returned.
            logits: gives the guided logits of those rows; called for one tile after another.
        """
        assert self._span is not None
        proposals = propose_in_tiles(
            slots,
            logits,
            self.columns,
            propose=partial(
                propose,
                temperature=self._options.temperature,
                remasking=self._options.remasking,
            ),
            draws=self._draws(),
            logprobs=self.logprobs,
            start=self._start,
        )
        rows = select_to_unmask(proposals.confidence, self._counts[self._step])
        self._ids[slots[rows]] = self._column_ids[proposals.column[rows]]
        self._step += 1
        if self._step == len(self._counts):
            self._leave_block(self._span)

    def _draws(self) -> StepDraws | None:
        if self._options.temperature == 0 and self._options.remasking != "random":
            return None
        return StepDraws(self._options.seed, self._region, self._num_blocks_done, self._step)

    def _leave_block(self, span: BlockSpan) -> None:
        self._num_blocks_done += 1
        if self._revisit and not self._held:
            # A slot that was given the mask id may still be filled: hold it and what follows back.
            block = self._ids[self._start + span.start : self._start + span.stop]
            self._held = bool((block == self._mask_id).any())
        if not self._held:
            self.num_committed = self._start + span.stop
        self._enter_next_block()

    def _enter_next_block(self) -> None:
        """Make the next block with anything to do the active one."""
        self._span: BlockSpan | None = None
        while self._later and self._span is None:
            span = self._later.pop()
            block = self._ids[self._start + span.start : self._start + span.stop]
            num_masked = int((block == self._mask_id).sum())
            self._counts = [n for n in transfer_counts(num_masked, span.num_steps) if n]
            self._step = 0
            if self._counts:
                self._span = span
            else:  # all of it was given
                self._num_blocks_done += 1
                if not self._held:
                    self.num_committed = self._start + span.stop
        if self._span is None:
            self.num_committed = self._stop
