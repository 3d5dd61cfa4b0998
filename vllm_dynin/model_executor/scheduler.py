"""What each engine step computes: vLLM's scheduler with denoising steps that are never cut.

A request past its prompt is given its whole sequence as the query of a step: its count of computed
tokens goes back to 0, and as many placeholders as its canvas has undecided slots stand for draft
tokens. The real ids live on the device (model_state.py). The canvas shrinks as tokens are
committed; vLLM appends, streams and checks stop conditions as for any model. Workers are sent one
placeholder, which tells a denoising step from a prompt pass (canvas_width.py).

A request is admitted when the KV cache has room for all of it, prompt and canvas, and takes it at
once: so no running request ever has to give way to another. Requests that do not fit a step
together go in the order in which they came (order.py).

With asynchronous scheduling the next step is decided while the last one is computed. A step is the
same rows whatever the last one decided, so for a request whose steps are known beforehand it is
enough to count them; what an answer that ends early has computed too much is discarded. All other
requests wait for each step's outcome.
"""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import replace
from typing import Any, cast

from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from vllm_dynin import compat, envs
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.model_executor.admission import plan_request
from vllm_dynin.model_executor.order import ServiceOrder
from vllm_dynin.model_executor.plan_transport import attach
from vllm_dynin.model_executor.reports import ReportBook
from vllm_dynin.model_executor.row_layout import RowLayout, prompt_rows
from vllm_dynin.planning import make_plan
from vllm_dynin.sampling.decoder import Plan
from vllm_dynin.sampling.fixed_steps import fixed_steps, has_fixed_steps
from vllm_dynin.step_counts import pack


class MaskedDiffusionScheduler(Scheduler):
    """Continuous batching of denoising steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A prompt pass samples nothing. Core derives this from `is_diffusion`, which we keep off.
        self.num_sampled_tokens_per_step = 0
        self._config = cast(LLaDAConfig, self.vllm_config.model_config.hf_config)
        self._allocate = self.kv_cache_manager.allocate_slots
        self.kv_cache_manager.allocate_slots = self._allocate_whole  # type: ignore[method-assign]
        self._order = ServiceOrder(
            prefers_short=envs.prefers_short(),
            has_priorities=self.policy == SchedulingPolicy.PRIORITY,
        )
        self._num_slots: dict[str, int] = {}
        self._num_streams: dict[str, int] = {}
        self._media: dict[str, list[MultiModalFeatureSpec]] = {}
        self._is_denoising: set[str] = set()
        # Rows of a second stream that never changes, and the requests for which it is computed.
        self._constant_rows: dict[str, int] = {}
        self._is_computed: set[str] = set()
        # Undecided slots of the requests of each step that is computed now, the oldest one first.
        self._asked: deque[dict[str, int]] = deque()
        self._is_async = bool(self.scheduler_config.async_scheduling)
        self._fixed_plans: dict[str, Plan] = {}  # of requests whose steps are known beforehand
        self._num_left: dict[str, int] = {}  # of their steps, those that are not scheduled yet
        self._reports = ReportBook()

    def add_request(self, request: Request) -> None:
        """Plan a new request and put the rows in front of its canvas in the place of its prompt.

        Only the engine core sees those rows: the frontend keeps the client's prompt, so usage
        counts the conditional prompt alone.
        """
        assert request.prompt_token_ids is not None and request.sampling_params is not None
        planned = plan_request(
            request.prompt_token_ids,
            request.sampling_params,
            request.mm_features,
            seed=secrets.randbits(63),
        )
        attach(request.sampling_params, planned)
        plan = make_plan(planned, self._config)
        canvas = plan.canvas
        layout = RowLayout.of(canvas, self.block_size)
        rows = prompt_rows(canvas, layout)
        request.prompt_token_ids = rows
        request._all_token_ids[:] = rows
        request.num_prompt_tokens = len(rows)
        self._media[request.request_id] = request.mm_features = [
            _moved(feature, layout.conditional_start) for feature in request.mm_features
        ]
        self._num_slots[request.request_id] = canvas.num_slots
        self._num_streams[request.request_id] = 1 if canvas.unconditional is None else 2
        if self._is_async and has_fixed_steps(plan):
            self._fixed_plans[request.request_id] = plan
        if canvas.is_unconditional_constant:
            self._constant_rows[request.request_id] = layout.conditional_start
        self._order.enter(request.request_id, sum(region.num_steps for region in plan.options))
        self._reports.open(request.request_id, planned.options, plan)
        super().add_request(request)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Decide the next step: whole denoising steps within the budget, in order of service."""
        for request in self.running:
            if request.num_computed_tokens >= request.num_prompt_tokens:  # its prompt is through
                self._is_denoising.add(request.request_id)
                if request.mm_features:
                    request.mm_features = []  # they are encoded and in the workers' hands
                    compat.forget_encoder_inputs(self, request.request_id)
        denoising = [
            request for request in self.running if request.request_id in self._is_denoising
        ]
        budget = self.max_num_scheduled_tokens
        for request in sorted(denoising, key=self._order.key):
            undecided = self._num_undecided(request)
            skipped = self._skipped(request.request_id)
            num_rows = request.num_tokens + undecided - skipped
            is_awaited = self._is_async and self._awaits_outcome(request)
            if is_awaited or num_rows > budget:
                # The base class would cut it to what is left. `current_step + 2` skips this step
                # alone, because `schedule` advances the count before it looks.
                request.next_decode_eligible_step = self.current_step + 2
                if not is_awaited:
                    self._reports.postpone(request.request_id)
                continue
            budget -= num_rows
            request.num_computed_tokens = skipped
            request.spec_token_ids = [0] * undecided
        if self._order.prefers_short and len(self.waiting) > 1:
            ordered = sorted(self.waiting, key=self._order.key)
            self.waiting.remove_requests(ordered)
            for request in ordered:
                self.waiting.add_request(request)
        output = super().schedule(throttle_prefills)
        for request_id in output.num_scheduled_tokens:
            self._reports.start(request_id)
        drafts = output.scheduled_spec_decode_tokens
        self._asked.append({request_id: len(slots) for request_id, slots in drafts.items()})
        self._count_steps(output)
        for request_id in drafts:
            is_skipped = self._skipped(request_id) > 0
            num_streams = 1 if is_skipped else self._num_streams[request_id]
            self._reports.count(request_id, num_streams, is_saved=is_skipped)
            self._is_computed.add(request_id)
            drafts[request_id] = [0]  # all that the workers need to know
        return output

    def _awaits_outcome(self, request: Request) -> bool:
        """Whether the next step of a request must not be decided before the last one's outcome."""
        if request.request_id in self._fixed_plans:
            return self._num_left[request.request_id] == 0  # the last step is being computed
        return request.num_in_flight_tokens > 0

    def _count_steps(self, output: SchedulerOutput) -> None:
        """Count the steps of requests whose steps are known beforehand, from the prompt pass on."""
        for request_id in self._fixed_plans.keys() & output.num_scheduled_tokens.keys():
            if request_id in output.scheduled_spec_decode_tokens:
                self._num_left[request_id] -= 1
            else:
                num_resumed = self.requests[request_id].num_output_tokens
                steps = fixed_steps(self._fixed_plans[request_id], num_resumed)
                self._num_left[request_id] = len(steps)

    def _allocate_whole(self, request: Request, *args: Any, **kwargs: Any) -> KVCacheBlocks | None:
        """KV blocks of a request: on admission those of its canvas too, or none at all.

        Otherwise the canvas would ask for its blocks a step later, and where there are none, the
        newcomer would be preempted and admitted again, each time for the price of a prompt pass.
        """
        if request.request_id in self._is_denoising:
            return self.kv_cache_manager.empty_kv_cache_blocks  # it has them all
        if request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED):
            kwargs["num_lookahead_tokens"] = self._num_undecided(request)
        return self._allocate(request, *args, **kwargs)

    def _num_undecided(self, request: Request) -> int:
        """Slots of a request that have not been given out."""
        return self._num_slots[request.request_id] - request.num_output_tokens

    def _skipped(self, request_id: str) -> int:
        """Rows of a request, from its first on, that a denoising step need not compute."""
        return self._constant_rows.get(request_id, 0) if request_id in self._is_computed else 0

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Send the report so far along with the tokens of a request that goes on."""
        drafts = scheduler_output.scheduled_spec_decode_tokens
        for request_id, num_asked in self._asked.popleft().items():
            index = model_runner_output.req_id_to_index[request_id]
            decided = model_runner_output.sampled_token_ids
            request = self.requests.get(request_id)
            if request is None or not request.num_stale_output_tokens:  # it was not preempted
                num_decided = len(decided[index]) if decided else 0
                self._reports.decide(request_id, num_asked, num_decided)
            drafts[request_id] = [0] * num_asked  # vLLM rewinds by those that were not decided
        updates = super().update_from_output(scheduler_output, model_runner_output)
        for update in updates.values():
            for output in update.outputs:
                if output.finish_reason is None:
                    output.kv_transfer_params = self._reports.parameters(output.request_id)
        return updates

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        """Send our counts along with vLLM's own; `metrics.py` of the entrypoints reads them."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            stats.running_lora_adapters |= pack(self._reports.take_counts())
        return stats

    def make_spec_decoding_stats(self, *args: Any, **kwargs: Any) -> None:
        """Undecided slots are no rejected drafts: report no acceptance rate."""
        return None

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """A preempted request starts over with a prompt pass."""
        self._is_denoising.discard(request.request_id)
        self._is_computed.discard(request.request_id)
        request.mm_features = self._media[request.request_id]
        self._reports.requeue(request.request_id)
        super()._preempt_request(request, *args, **kwargs)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Forget a finished request; its report goes where a KV transfer would be announced."""
        self._is_denoising.discard(request.request_id)
        self._is_computed.discard(request.request_id)
        self._order.leave(request.request_id)
        self._num_slots.pop(request.request_id, None)
        self._num_streams.pop(request.request_id, None)
        self._constant_rows.pop(request.request_id, None)
        self._fixed_plans.pop(request.request_id, None)
        self._num_left.pop(request.request_id, None)
        self._media.pop(request.request_id, None)
        kv_parameters, encoder_parameters = super()._free_request(request, *args, **kwargs)
        assert kv_parameters is None  # KV transfer is refused at start-up
        is_complete = request.status in (
            RequestStatus.FINISHED_STOPPED,
            RequestStatus.FINISHED_LENGTH_CAPPED,
        )
        report = self._reports.close(request.request_id, is_complete=is_complete)
        return report, encoder_parameters


def _moved(feature: MultiModalFeatureSpec, offset: int) -> MultiModalFeatureSpec:
    """The feature of a medium whose prompt starts `offset` rows later."""
    position = feature.mm_position
    return replace(feature, mm_position=replace(position, offset=position.offset + offset))
