"""What the forward of each denoising step is given: ids, positions, attention.

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
from vllm.v1.worker.gpu.model_states.interface import ModelState

from vllm_dynin import compat
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.model_executor import plan_transport
from vllm_dynin.model_executor.attention_inputs import AttentionInputs
from vllm_dynin.model_executor.canvas_store import CanvasStore
from vllm_dynin.model_executor.canvas_width import widest_canvas
from vllm_dynin.model_executor.engine_sampler import MaskedDiffusionSampler
from vllm_dynin.model_executor.engine_step import EngineStep
from vllm_dynin.model_executor.peak_memory import use_most_memory
from vllm_dynin.model_executor.slot import DenoisingRequest, Slot
from vllm_dynin.model_executor.trajectories import TrajectoryStore
from vllm_dynin.model_executor.unused_memory import own_no_grammars
from vllm_dynin.sampling.staging import Staging

if TYPE_CHECKING:
    from vllm.tasks import GenerationTask
    from vllm.v1.core.sched.output import NewRequestData
    from vllm.v1.worker.gpu.block_table import BlockTables
    from vllm.v1.worker.gpu.input_batch import InputBatch


class DenoisingModel(Protocol):
    """What the state uses of the model: `step` is written before each forward."""

    config: LLaDAConfig
    step: EngineStep | None


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
        self._store = CanvasStore(
            self.max_num_reqs, self.model_config.max_model_len, self.max_num_tokens, device
        )
        self._staging = Staging(64 * self.max_num_tokens, device)
        self._step: EngineStep | None = None
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
        return MaskedDiffusionSampler(self.device, sampler), None

    def initialize_kv_cache(self, kv_cache_config: Any, block_tables: BlockTables) -> None:
        """Note the rows of a KV block and what a table entry stands for; load the codecs."""
        self._block_size = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        self._table_unit = block_tables.block_sizes[0]
        media = getattr(self._lm, "media", None)
        if media is not None and get_tensor_model_parallel_rank() == 0:
            media.load()  # at a request, a file that has gone meanwhile would end the engine

    # --- requests come and go ---------------------------------------------------------------------

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """Take a new request, or one that resumes after preemption, into slot `req_index`."""
        self._drop(req_index)
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
            self._store,
            req_index,
            committed,
            [feature.identifier for feature in new_req_data.mm_features],
            self.trajectories.start(new_req_data.req_id) if request.options.trajectory else None,
        )

    def remove_request(self, req_id: str) -> None:
        """Forget a finished, aborted or preempted request."""
        self._drop(self._slot_of.pop(req_id, -1))

    def _drop(self, req_index: int) -> None:
        slot = self.slots.pop(req_index, None)
        if slot is not None:
            slot.leave()

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
        """Write ids and positions of the denoising requests into the runner's own buffers."""
        if not self._block_size:  # no KV cache yet: vLLM measures how much memory is left for it
            self._use_most_memory()
        # A dummy batch may come without attention, hence without a step: then none is left over.
        step, self._step = self._step, None
        self._lm.step = step if step is not None and step.requests else None
        if self._lm.step is not None:
            self._lm.step.prepare(input_batch)
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
            yield DenoisingRequest(row, slot, first)

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
        """Lay the step out, send what the host knows of it, and give the attention metadata."""
        self._staging.begin()
        requests = list(self._denoising_requests(input_batch))
        attention = AttentionInputs(
            input_batch, requests, block_tables[0], self._table_unit, self._staging
        )
        self._step = EngineStep(requests, input_batch, self._store, self._staging)
        self._staging.send()
        return attention.metadata(slot_mappings, attn_groups, kv_cache_config)
