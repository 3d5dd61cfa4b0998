"""Algorithm C: block-wise speech decoding over units, end of audio and EOS.

Like text, blocks are decoded left to right and the most confident proposals stay. Unlike text, a
proposal is always drawn from the softmax, and its confidence is its probability.

Source: `t2s_generate_mmu_like` of Dynin-Omni.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vllm_dynin.canvas import Parity
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.logprobs import RowLogprobs
from vllm_dynin.sampling.noise import StepDraws
from vllm_dynin.sampling.policies import select_to_unmask
from vllm_dynin.sampling.proposals import propose_sampled
from vllm_dynin.sampling.schedules import BlockSpan, transfer_counts
from vllm_dynin.sampling.tiles import LogitRows, propose_in_tiles


@dataclass(frozen=True, kw_only=True)
class SpeechOptions:
    """How a speech region is decoded.

    Args:
        block_length: slots per block.
        num_steps: denoising steps over all blocks.
        temperature: divides the logits. 0 is the arg-max in `default` parity; `reference` then
            samples as at 1, as the original does.
        parity: which arithmetic.
        seed: of the request.
        num_logprobs: alternatives to keep for each unit, None for no log-probabilities.
    """

    block_length: int
    num_steps: int
    temperature: float = 1.0
    parity: Parity = Parity.DEFAULT
    seed: int = 0
    num_logprobs: int | None = None

    @property
    def sampling_temperature(self) -> float:
        """What the logits are divided by; 0 for the arg-max."""
        if self.temperature == 0 and self.parity is Parity.REFERENCE:
            return 1.0
        return self.temperature


def speech_spans(num_slots: int, block_length: int, num_steps: int) -> Iterator[BlockSpan]:
    """Cut a speech region into blocks; each has `num_steps // num_blocks` steps, at least one.

    The rule differs from that of text: the last block has as many steps as the others, and steps
    that do not divide are dropped.

    Args:
        num_slots: slots of the region, at least 1.
        block_length: slots per block, at least 1; more than `num_slots` means one block.
        num_steps: over all blocks, at least 1.
    """
    num_blocks = -(-num_slots // min(block_length, num_slots))
    share = max(1, num_steps // num_blocks)
    for start in range(0, num_slots, block_length):
        stop = min(start + block_length, num_slots)
        yield BlockSpan(start=start, stop=stop, num_steps=share)


@dataclass(frozen=True)
class _Step:
    """One denoising step: in which block, and how many of how many masked slots it decides."""

    block: int
    step: int
    start: int
    stop: int
    num_masked: int
    num_to_unmask: int


class SpeechDecoder:
    """Progress of one speech region through Algorithm C.

    Args:
        ids: int64 [N] canvas of the request on its device; slots `start..stop` of it are the
            region, written in place as they are unmasked.
        start: first slot of the region.
        stop: slot behind the region.
        mask_id: what a masked slot holds.
        columns: allowed ids.
        options: see `SpeechOptions`.
        region: index of the region in its canvas, part of the key of the draws.
        done: slots of the region that are already committed, a multiple of the block length
            (a request that resumes after preemption).
    """

    def __init__(
        self,
        ids: Tensor,
        start: int,
        stop: int,
        *,
        mask_id: int,
        columns: Columns,
        options: SpeechOptions,
        region: int = 0,
        done: int = 0,
    ) -> None:
        self.columns = columns
        self.logprobs: RowLogprobs | None = None
        if options.num_logprobs is not None:
            self.logprobs = RowLogprobs.empty(stop - start, options.num_logprobs, ids.device)
        self._ids, self._start, self._stop = ids, start, stop
        self._mask_id, self._options, self._region = mask_id, options, region
        self._column_ids = columns.ids(ids.device)
        spans = speech_spans(stop - start, options.block_length, options.num_steps)
        self._steps = list(self._plan(spans, done))[::-1]

    def _plan(self, spans: Iterator[BlockSpan], done: int) -> Iterator[_Step]:
        """All steps to come; one that would decide nothing is left out."""
        is_masked = (self._ids[self._start : self._stop] == self._mask_id).tolist()
        for block, span in enumerate(spans):
            num_masked = 0 if span.start < done else sum(is_masked[span.start : span.stop])
            for step, count in enumerate(transfer_counts(num_masked, span.num_steps)):
                if count:
                    yield _Step(block, step, span.start, span.stop, num_masked, count)
                num_masked -= count

    @property
    def num_committed(self) -> int:
        """Slots of the canvas, from the first on, that are final: up to the active block."""
        return self._start + self._steps[-1].start if self._steps else self._stop

    @property
    def finished(self) -> bool:
        """Whether every block is done."""
        return not self._steps

    def wanted(self) -> Tensor:
        """int64 slots whose logits the next step needs, ascending; not empty."""
        now = self._steps[-1]
        first = self._start + now.start
        is_masked = self._ids[first : self._start + now.stop] == self._mask_id
        # The count is known on the host, so a stable sort finds the slots without a device sync.
        order = torch.sort(is_masked.to(torch.uint8), descending=True, stable=True).indices
        return order[: now.num_masked] + first

    def step(self, slots: Tensor, logits: LogitRows) -> None:
        """One denoising step.

        Args:
            slots: what `wanted` returned.
            logits: gives the guided logits of those rows; called for one tile after another.
        """
        now = self._steps.pop()
        proposals = propose_in_tiles(
            slots,
            logits,
            self.columns,
            propose=partial(
                propose_sampled,
                temperature=self._options.sampling_temperature,
                parity=self._options.parity,
            ),
            draws=self._draws(now),
            logprobs=self.logprobs,
            start=self._start,
        )
        rows = select_to_unmask(proposals.confidence, now.num_to_unmask)
        self._ids[slots[rows]] = self._column_ids[proposals.column[rows]]

    def _draws(self, now: _Step) -> StepDraws | None:
        if self._options.sampling_temperature == 0:
            return None
        return StepDraws(self._options.seed, self._region, now.block, now.step)
