"""What the forward of each denoising step is given: ids, positions, attention, wanted rows.

vLLM's V2 runner calls one `ModelState` per worker. Every denoising step recomputes all rows of a
request (exact mode), so the state of a request is its canvas alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata
from vllm.v1.worker.gpu.model_states.interface import ModelState

from vllm_dynin import compat
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.model_executor import plan_transport
from vllm_dynin.model_executor.canvas_width import widest_canvas
from vllm_dynin.model_executor.engine_sampler import MaskedDiffusionSampler
from vllm_dynin.model_executor.peak_memory import use_most_memory
from vllm_dynin.model_executor.slot import DenoisingRequest, Slot
from vllm_dynin.model_executor.step_logits import WantedRows
from vllm_dynin.model_executor.trajectories import TrajectoryStore
from vllm_dynin.model_executor.unused_memory import own_no_grammars

if TYPE_CHECKING:
    from vllm.tasks import GenerationTask
    from vllm.v1.core.sched.output import NewRequestData
    from vllm.v1.worker.gpu.block_table import BlockTables
    from vllm.v1.worker.gpu.input_batch import InputBatch


class DenoisingModel(Protocol):
    """What the state uses of the model: `wanted` is written before each forward."""

    config: LLaDAConfig
    wanted: list[WantedRows]


class MaskedDiffusionState(ModelState):
    """Canvases of the running requests and the inputs of each step."""

    num_new_sampled_tokens_per_step = 0  # a step adds no token beyond what the sampler commits

    def __init__(
        self, vllm_config: VllmConfig, model: nn.Module, encoder_cache: Any, device: torch.device
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self._lm = cast(DenoisingModel, model)
        if device.type == "cpu":
            compat.replace_runner_kernels()  # here, because only workers import those kernels
        self.slots: dict[int, Slot] = {}
        self.denoising: list[DenoisingRequest] = []
        """Those of the current step, in batch order; the sampler holds this very list."""
        self.trajectories = TrajectoryStore()
        self._slot_of: dict[str, int] = {}
        # Of the KV cache, which is made later: the attention backend may choose another block size.
        self._block_size = self._table_unit = 0
        self._is_measured = False

    def get_supported_generation_tasks(self) -> tuple[GenerationTask, ...]:
        """Text generation is the one task vLLM core routes here."""
        return ("generate",)

    def custom_sampler(self, sampler: Any) -> tuple[Any, Any]:
        """Replace vLLM's sampler; there is no rejection sampling, and no grammar."""
        own_no_grammars()
        return MaskedDiffusionSampler(self.denoising, self.device, sampler), None

    def initialize_kv_cache(self, kv_cache_config: Any, block_tables: BlockTables) -> None:
        """Note the rows of a KV block, and how many one entry of a block table stands for."""
        self._block_size = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        self._table_unit = block_tables.block_sizes[0]

    # --- requests come and go ---------------------------------------------------------------------

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """Take a new request, or one that resumes after preemption, into slot `req_index`."""
        self.slots.pop(req_index, None)
        self._slot_of[new_req_data.req_id] = req_index
        request = plan_transport.received(new_req_data.sampling_params)
        if request is None:
            return
        assert new_req_data.prompt_token_ids is not None
        assert new_req_data.prefill_token_ids is not None
        committed = tuple(new_req_data.prefill_token_ids[len(new_req_data.prompt_token_ids) :])
        self.slots[req_index] = Slot(
            request,
            self._lm.config,
            self._block_size,
            self.device,
            committed,
            [feature.identifier for feature in new_req_data.mm_features],
            self.trajectories.start(new_req_data.req_id) if request.options.trajectory else None,
        )

    def remove_request(self, req_id: str) -> None:
        """Forget a finished, aborted or preempted request."""
        self.slots.pop(self._slot_of.pop(req_id, -1), None)

    # --- inputs of a step -------------------------------------------------------------------------

    def prepare_inputs_embeds(
        self,
        scheduled_encoder_inputs: dict[str, list[int]],
        input_batch: InputBatch,
        req_states: Any,
    ) -> None:
        """Encode the media that are due and hand their ids to the requests.

        No embeddings come out: every modality is token ids.
        """
        self.execute_mm_encoder(scheduled_encoder_inputs)
        for index in input_batch.idx_mapping_np[: input_batch.num_reqs].tolist():
            slot = self.slots.get(index)
            if slot is not None and not slot.is_ready:
                slot.take_media(self.encoder_cache.encoder_outputs)

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        """Nothing to override in vLLM's dummy inputs."""
        return {}

    def prepare_inputs(self, input_batch: InputBatch, req_states: Any) -> dict[str, Any]:
        """Write ids and positions of the denoising requests into the runner's own buffers.

        In place, because captured graphs read those buffers. The runner has computed KV slots from
        row numbers before, so positions are free to be what the model was trained on.
        """
        if not self._block_size:  # no KV cache yet: vLLM measures how much memory is left for it
            self._use_most_memory()
        self.denoising[:] = self._denoising_requests(input_batch)
        for request in self.denoising:
            rows = slice(request.first, request.first + request.slot.num_rows)
            input_batch.input_ids[rows] = request.slot.ids()
            input_batch.positions[rows] = request.slot.positions()
        self._lm.wanted = [
            request.slot.wanted_rows(request.wanted, request.first) for request in self.denoising
        ]
        return {}

    def _use_most_memory(self) -> None:
        if self._is_measured or self.device.type == "cpu":  # there nothing that comes free counts
            return
        self._is_measured = True
        media = self.model_config.multimodal_config
        is_first = get_tensor_model_parallel_rank() == 0  # the others run no codecs
        use_most_memory(
            self._lm,
            max_rows=self.max_num_tokens,
            max_slots=widest_canvas(self.vllm_config),
            with_codecs=is_first and media is not None and not media.skip_mm_profiling,
        )

    def _denoising_requests(self, batch: InputBatch) -> Iterator[DenoisingRequest]:
        if batch.num_draft_tokens_per_req is None:
            return
        for row in np.flatnonzero(batch.num_draft_tokens_per_req).tolist():
            slot = self.slots.get(int(batch.idx_mapping_np[row]))
            if slot is None:
                continue
            first, stop = batch.query_start_loc_np[row : row + 2].tolist()
            assert stop - first >= slot.num_rows, "a denoising step was cut"
            yield DenoisingRequest(row, slot, first, slot.decoder.wanted())

    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: Any,
        block_tables: tuple[Tensor, ...],
        slot_mappings: Tensor,
        attn_groups: Any,
        kv_cache_config: Any,
        for_capture: bool = False,
        ubatch_idx: int = 0,
    ) -> dict[str, Any]:
        """Attention metadata: each stream of a request is a sequence of its own, never causal."""
        sequences = _Sequences()
        bounds = input_batch.query_start_loc_np
        has_drafts = input_batch.num_draft_tokens_per_req
        for row in range(input_batch.num_reqs):
            first, stop = int(bounds[row]), int(bounds[row + 1])
            slot = self.slots.get(int(input_batch.idx_mapping_np[row]))
            if slot is None or has_drafts is None or not has_drafts[row]:
                sequences.add(row, stop, stop - first)
                continue
            layout = slot.layout
            if slot.num_skipped == 0 and layout.unconditional_stop:
                sequences.add(row, first + layout.unconditional_stop, layout.unconditional_stop)
            if slot.num_skipped == 0 and layout.conditional_start > layout.unconditional_stop:
                # padding: computed, because it is scheduled; never read
                sequences.add(row, first + layout.conditional_start, layout.conditional_start)
            length = layout.num_rows - layout.conditional_start
            shift = layout.conditional_start // self._table_unit
            sequences.add(row, first + slot.num_rows, length, shift)
            if first + slot.num_rows < stop:
                # stand-ins of a medium that has fewer codes than were planned for
                sequences.add(row, stop, stop - first)
        starts = torch.tensor(sequences.bounds, dtype=torch.int32)
        lengths = torch.tensor(sequences.lengths, dtype=torch.int32)
        return build_attn_metadata(
            attn_groups=attn_groups,
            num_reqs=len(sequences.lengths),
            num_tokens=input_batch.num_tokens,
            query_start_loc_gpu=starts.to(self.device, non_blocking=True),
            query_start_loc_cpu=starts,
            max_query_len=int(starts.diff().max()),
            seq_lens=lengths.to(self.device, non_blocking=True),
            max_seq_len=max(sequences.lengths),
            block_tables=(sequences.block_table(block_tables[0]),),
            slot_mappings=slot_mappings,
            kv_cache_config=kv_cache_config,
            seq_lens_cpu_upper_bound=lengths,
            causal=False,
        )


class _Sequences:
    """Query ranges, lengths and block tables of the sequences the attention backend sees."""

    def __init__(self) -> None:
        self.bounds, self.lengths = [0], list[int]()
        self._rows, self._shifts = list[int](), list[int]()

    def add(self, row: int, stop: int, length: int, shift: int = 0) -> None:
        """Append the sequence of queries up to `stop`, whose KV starts at block `shift`."""
        self.bounds.append(stop)
        self.lengths.append(length)
        self._rows.append(row)
        self._shifts.append(shift)

    def block_table(self, table: Tensor) -> Tensor:
        """int32 [sequences, blocks]: each sequence's blocks, from its first on."""
        rows = torch.tensor(self._rows, device=table.device)
        if not any(self._shifts):
            return table if self._rows == list(range(len(table))) else table[rows]
        columns = torch.arange(table.shape[1], device=table.device)
        shifts = torch.tensor(self._shifts, device=table.device)
        columns = (columns + shifts[:, None]).clamp(max=table.shape[1] - 1)
        return table[rows[:, None], columns]
