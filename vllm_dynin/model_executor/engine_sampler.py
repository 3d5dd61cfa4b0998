"""vLLM's sampler, replaced: one denoising step of every request in the batch.

The algorithm is in `sampling/`; this translates between it and vLLM's `SamplerOutput`.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from vllm.distributed import get_tp_group
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from vllm_dynin import envs
from vllm_dynin.model_executor.engine_step import EngineStep
from vllm_dynin.model_executor.group_logits import GroupLogits
from vllm_dynin.model_executor.head import RestrictedHead
from vllm_dynin.model_executor.ranks import check_agreement
from vllm_dynin.model_executor.step_logits import StepLogits
from vllm_dynin.sampling.logprobs import RowLogprobs

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.input_batch import InputBatch


class DenoisingLogits:
    """What a step's requests get their logits from.

    Args:
        head: the output head.
        hidden_TD: hidden states of the step's rows, and others behind them.
        step: the step.
    """

    def __init__(self, head: RestrictedHead, hidden_TD: Tensor, step: EngineStep) -> None:
        self.step, self._head, self._hidden_TD = step, head, hidden_TD

    def decode(self) -> None:
        """Run the step of every denoising request."""
        step, hidden_TD = self.step, self._hidden_TD
        if step.batched is not None:
            kept_PD = step.store.kept.hidden_PD
            logits = GroupLogits(self._head, hidden_TD, kept_PD, step.batched)
            step.batched.run(logits)
        if step.alone:
            wanted = [
                request.slot.wanted_rows(slots, request.first)
                for request, slots in zip(step.alone, step.wanted, strict=True)
            ]
            rows = StepLogits(self._head, hidden_TD, wanted)
            for number in rows.order:
                slot = step.alone[number].slot
                slot.step_alone(step.wanted[number], partial(rows.rows, number))
        for request in step.requests:
            if request.slot.keeps_next:
                request.slot.keep_unconditional(hidden_TD, request.first)


class MaskedDiffusionSampler:
    """Denoises, and gives out the slots that became final.

    Args:
        device: where sampled ids are put.
        sampler: vLLM's sampler, for the parts of it the runner reaches into.
    """

    def __init__(self, device: torch.device, sampler: Any) -> None:
        self._device = device
        self._checked_group = get_tp_group().cpu_group if envs.checks_ranks() else None
        # The runner reads these attributes of its sampler.
        self.sampling_states = sampler.sampling_states
        self.req_states = sampler.req_states
        self.penalties_state = SimpleNamespace(output_bin_counts=None)

    def add_request(self, req_idx: int, sampling_params: Any) -> None:
        """Keep vLLM's own bookkeeping of sampling parameters in step."""
        self.sampling_states.add_request(req_idx, sampling_params)

    def apply_staged_writes(self) -> None:
        """Copy that bookkeeping to the device."""
        self.sampling_states.apply_staged_writes()

    def __call__(
        self,
        logits: DenoisingLogits | Tensor,
        input_batch: InputBatch,
        draft_logits: Any = None,
    ) -> SamplerOutput:
        """Run one denoising step for every denoising request."""
        if not isinstance(logits, DenoisingLogits):
            return self._nothing(input_batch)
        step = logits.step
        logits.decode()
        if self._checked_group is not None:
            self._check_ranks(step, input_batch, self._checked_group)
        logprobs = _found_logprobs(step)
        sampled, num_sampled, num_rejected = step.committed()
        return SamplerOutput(
            sampled_token_ids=sampled,
            logprobs_tensors=_joined_logprobs(step.counts[0].tolist(), logprobs, self._device),
            num_nans=None,
            num_sampled=num_sampled,
            num_rejected=num_rejected,
        )

    def _check_ranks(self, step: EngineStep, batch: InputBatch, group: ProcessGroup) -> None:
        canvases = [request.slot.canvas_ids for request in step.requests]
        names = [batch.req_ids[request.row] for request in step.requests]
        check_agreement(canvases, names, group)

    def _nothing(self, batch: InputBatch) -> SamplerOutput:
        """A batch without denoising requests: vLLM warms up, or measures memory."""
        counts = np.zeros((2, batch.num_reqs), dtype=np.int32)
        counts[1] = np.diff(batch.query_start_loc_np[: batch.num_reqs + 1])
        num_sampled, num_rejected = torch.from_numpy(counts).to(self._device, non_blocking=True)
        return SamplerOutput(
            sampled_token_ids=torch.zeros(
                batch.num_reqs, 1, dtype=torch.int32, device=self._device
            ),
            logprobs_tensors=None,
            num_nans=None,
            num_sampled=num_sampled,
            num_rejected=num_rejected,
        )


def _found_logprobs(step: EngineStep) -> dict[int, RowLogprobs]:
    """Log-probabilities of what each request gives out now, by its place in the batch."""
    logprobs = dict[int, RowLogprobs]()
    for request in step.alone:
        slot, decoder = request.slot, request.slot.decoder
        assert decoder is not None
        first, stop = slot.num_emitted, decoder.num_committed
        if stop > first and (found := decoder.logprobs(first, stop)) is not None:
            logprobs[request.row] = found
    return logprobs


def _joined_logprobs(
    counts: list[int], logprobs: dict[int, RowLogprobs], device: torch.device
) -> LogprobsTensors | None:
    """One row per committed token in batch order; tokens nobody asked about get zeros."""
    if not logprobs:
        return None
    width = max(found.ids.shape[1] for found in logprobs.values())
    parts = []
    for row, count in enumerate(counts):
        if not count:
            continue
        part = RowLogprobs.empty(count, width - 1, device)
        found = logprobs.get(row)
        if found is not None:
            part.ids[:, : found.ids.shape[1]] = found.ids
            part.logprobs[:, : found.ids.shape[1]] = found.logprobs
            part.rank[:] = found.rank
        parts.append(part)
    return LogprobsTensors(
        logprob_token_ids=torch.cat([part.ids for part in parts]),
        logprobs=torch.cat([part.logprobs for part in parts]),
        selected_token_ranks=torch.cat([part.rank for part in parts]),
        cu_num_generated_tokens=[0, *accumulate(counts)],
    )
