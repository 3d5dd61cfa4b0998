"""vLLM's sampler, replaced: one denoising step of every request in the batch.

The algorithm is in `sampling/`; this translates between it and vLLM's `SamplerOutput`.
"""

from __future__ import annotations

from functools import partial
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
from vllm_dynin.model_executor.ranks import check_agreement
from vllm_dynin.model_executor.slot import DenoisingRequest
from vllm_dynin.model_executor.step_logits import StepLogits
from vllm_dynin.sampling.logprobs import RowLogprobs

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.input_batch import InputBatch


class MaskedDiffusionSampler:
    """Denoises, and gives out the slots that became final.

    Args:
        denoising: the denoising requests of the current step in batch order. The model state fills
            this list anew before each step.
        device: where sampled ids are put.
        sampler: vLLM's sampler, for the parts of it the runner reaches into.
    """

    def __init__(
        self, denoising: list[DenoisingRequest], device: torch.device, sampler: Any
    ) -> None:
        self._denoising, self._device = denoising, device
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
        self, logits: StepLogits | Tensor, input_batch: InputBatch, draft_logits: Any = None
    ) -> SamplerOutput:
        """Run one denoising step for every denoising request.

        `num_rejected` is the whole query: the device-side count of computed tokens stays where it
        is, so the next step computes the same rows again. The exception is the step after which
        the rows of a constant second stream count as computed.
        """
        committed: dict[int, Tensor] = {}
        logprobs: dict[int, RowLogprobs] = {}
        computed: dict[int, int] = {}
        if isinstance(logits, StepLogits):
            for number in logits.order:
                request = self._denoising[number]
                slot, decoder = request.slot, request.slot.decoder
                slot.step(request.wanted, partial(logits.rows, number))
                if slot.keep_unconditional(logits.hidden_TD, request.first):
                    computed[request.row] = slot.num_skipped
                first, stop = slot.num_emitted, decoder.num_committed
                if stop > first:
                    committed[request.row] = decoder.ids[first:stop]
                    if (found := decoder.logprobs(first, stop)) is not None:
                        logprobs[request.row] = found
                    slot.num_emitted = stop
            if self._checked_group is not None:
                self._check_ranks(input_batch, self._checked_group)
        return self._output(input_batch, committed, logprobs, computed)

    def _check_ranks(self, batch: InputBatch, group: ProcessGroup) -> None:
        canvases = [request.slot.decoder.ids for request in self._denoising]
        names = [batch.req_ids[request.row] for request in self._denoising]
        check_agreement(canvases, names, group)

    def _output(
        self,
        batch: InputBatch,
        committed: dict[int, Tensor],
        logprobs: dict[int, RowLogprobs],
        computed: dict[int, int],
    ) -> SamplerOutput:
        device = self._device
        counts = np.zeros((2, batch.num_reqs), dtype=np.int32)
        width = max([len(ids) for ids in committed.values()], default=1)
        sampled = torch.zeros(batch.num_reqs, width, dtype=torch.int32, device=device)
        for row, ids in committed.items():
            sampled[row, : len(ids)] = ids
            counts[0, row] = len(ids)
        counts[1] = np.diff(batch.query_start_loc_np[: batch.num_reqs + 1])
        for row, count in computed.items():
            counts[1, row] -= count
        num_sampled, num_rejected = torch.from_numpy(counts).to(device, non_blocking=True)
        return SamplerOutput(
            sampled_token_ids=sampled,
            logprobs_tensors=_joined_logprobs(batch.num_reqs, committed, logprobs),
            num_nans=None,
            num_sampled=num_sampled,
            num_rejected=num_rejected,
        )


def _joined_logprobs(
    num_reqs: int, committed: dict[int, Tensor], logprobs: dict[int, RowLogprobs]
) -> LogprobsTensors | None:
    """One row per committed token in batch order; tokens nobody asked about get zeros."""
    if not logprobs:
        return None
    width = max(found.ids.shape[1] for found in logprobs.values())
    ends, parts = [0], []
    for row in range(num_reqs):
        ids = committed.get(row)
        count = 0 if ids is None else len(ids)
        ends.append(ends[-1] + count)
        if ids is not None:
            part = RowLogprobs.empty(count, width - 1, ids.device)
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
        cu_num_generated_tokens=ends,
    )
