"""One running request on a worker: its canvas, its rows, and the media it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from vllm_dynin.config import LLaDAConfig
from vllm_dynin.model_executor.canvas_store import CanvasStore, row_table
from vllm_dynin.model_executor.row_layout import RowLayout
from vllm_dynin.model_executor.step_logits import WantedRows
from vllm_dynin.planning import PlanRequest, make_plan
from vllm_dynin.sampling.batched import Guidance, RequestStep
from vllm_dynin.sampling.decided_steps import DecidedSteps
from vllm_dynin.sampling.decoder import CanvasDecoder
from vllm_dynin.sampling.fixed_steps import FixedStep, fixed_steps, has_fixed_steps
from vllm_dynin.sampling.tiles import LogitRows


class Slot:
    """State of one request, complete once its media are encoded.

    Args:
        request: what its plan is made from.
        config: of the checkpoint.
        block_size: rows of a KV block.
        store: where its canvas is.
        index: the runner's number for it, its line in the store.
        committed: ids given out before the request was preempted.
        media: content hashes of its media, in order.
        trajectory: where to note what each denoising step decides, or None.
    """

    def __init__(
        self,
        request: PlanRequest,
        config: LLaDAConfig,
        block_size: int,
        store: CanvasStore,
        index: int,
        committed: tuple[int, ...] = (),
        media: Sequence[str] = (),
        trajectory: DecidedSteps | None = None,
    ) -> None:
        self.num_emitted = len(committed)
        self.decoder: CanvasDecoder | None = None
        """Decodes it alone; None where its steps are known beforehand and it goes with others."""
        self.steps: list[FixedStep] = []
        """Those to come, the next one last."""
        self.first_cell = index * store.width
        self._request, self._config, self._block_size = request, config, block_size
        self._store, self._index, self._committed = store, index, committed
        self._codes: list[Tensor | None] = [None] * len(media)
        self._media = tuple(media)
        self._trajectory = trajectory
        self.is_ready = False
        self._kept: int | None = None
        if not media:
            self._start()

    def take_media(self, encoded: Mapping[str, Tensor]) -> None:
        """Copy what has been encoded of this request's media; start when nothing is missing.

        Args:
            encoded: int64 [n, 1] token ids by content hash.
        """
        for index, name in enumerate(self._media):
            if self._codes[index] is None and name in encoded:
                self._codes[index] = encoded[name][:, 0]
        if not self.is_ready and all(codes is not None for codes in self._codes):
            self._start()

    def _start(self) -> None:
        codes = [codes.tolist() for codes in self._codes if codes is not None]
        self.plan = plan = make_plan(self._request.with_media(codes), self._config)
        canvas, device = plan.canvas, self._store.device
        self.layout = RowLayout.of(
            canvas, self._block_size, conditional_start=self._planned_start()
        )
        self._is_constant = canvas.is_unconditional_constant
        self.row_table = row_table(canvas, self.layout)
        """int64 [2, num_rows]: cell and position of each row of a step."""
        self.row_table[0] += self.first_cell
        self._store.enter_request(self._index, canvas, self.layout, self._committed)
        ids = self.canvas_ids
        if self._trajectory is None and has_fixed_steps(plan):
            self.steps = fixed_steps(plan, len(self._committed))[::-1]
        else:
            self.decoder = CanvasDecoder(plan, device, self._committed, ids)
        self.is_ready = True
        if self._trajectory is not None:
            self._trajectory.begin(ids, canvas.mask_id)

    def _planned_start(self) -> int:
        """Where the scheduler, which knows no codes, has put the conditional stream."""
        if not self._request.media:
            return 0
        canvas = make_plan(self._request, self._config).canvas
        return RowLayout.of(canvas, self._block_size).conditional_start

    @property
    def canvas_ids(self) -> Tensor:
        """int64 [N]: its canvas as it stands, a view."""
        return self._store.ids_SW[self._index, : self.layout.num_slots]

    @property
    def num_skipped(self) -> int:
        """Rows, from the first on, that a step does not compute: a constant second stream."""
        return 0 if self._kept is None else self.layout.conditional_start

    @property
    def num_rows(self) -> int:
        """Rows of a step."""
        return self.row_table.shape[1]

    @property
    def keeps_next(self) -> bool:
        """Whether the next step computes a second stream that never changes, and the last time."""
        return self._kept is None and self._is_constant

    def keep_unconditional(self, hidden_TD: Tensor, first_row: int) -> None:
        """After a step that `keeps_next`: keep the second stream's hidden states.

        Args:
            hidden_TD: hidden states of the step.
            first_row: first of this request's rows in it.
        """
        first = first_row + self.layout.unconditional_canvas
        self._kept = self._store.kept.put(hidden_TD[first : first + self.layout.num_slots])
        self.row_table = self.row_table[:, self.num_skipped :]

    def leave(self) -> None:
        """Its line in the store is another's from now on; give back what it holds elsewhere."""
        if self._trajectory is not None:
            self._trajectory.end()
        if self._kept is not None:
            self._store.kept.free(self._kept)
            self._kept = None

    def step_alone(self, slots: Tensor, logits: LogitRows) -> None:
        """One denoising step, given the guided logits of the wanted slots."""
        assert self.decoder is not None
        self.decoder.step(slots, logits)
        if self._trajectory is not None:
            self._trajectory.record(self.decoder.ids, self.plan.canvas.mask_id)

    def request_step(self, first_row: int) -> RequestStep:
        """Its part in the next step, its rows starting at `first_row`, with others."""
        canvas, layout = self.plan.canvas, self.layout
        guidance, second_row = None, 0
        if canvas.unconditional is not None:
            is_kept = self._kept is not None
            form = canvas.unconditional.form
            guidance = Guidance(self.plan.guidance_scale, form, is_kept)
            second_row = first_row + layout.unconditional_canvas
            if self._kept is not None:
                second_row = self._kept
        return RequestStep(
            self.steps[-1],
            self._index,
            first_row + layout.canvas - self.num_skipped,
            second_row,
            guidance,
        )

    def wanted_rows(self, slots: Tensor, first_row: int) -> WantedRows:
        """Rows of the step that hold `slots`, for a request whose rows start at `first_row`."""
        assert self.decoder is not None
        canvas, columns = self.plan.canvas, self.decoder.columns
        rows = slots + (first_row + self.layout.canvas - self.num_skipped)
        if canvas.unconditional is None:
            return WantedRows(rows=rows, columns=columns)
        row, kept = first_row + self.layout.unconditional_canvas, None
        if self._kept is not None:
            kept = self._store.kept.hidden_PD[slots + self._kept]
        return WantedRows(
            rows=rows,
            columns=columns,
            unconditional_rows=slots + row if kept is None else None,
            unconditional_RD=kept,
            guidance_scale=self.plan.guidance_scale,
            form=canvas.unconditional.form,
        )


@dataclass(frozen=True)
class DenoisingRequest:
    """A request of the batch that is past its prompt.

    Args:
        row: its place in the batch.
        slot: its state.
        first: first row of the step that is its own.
    """

    row: int
    slot: Slot
    first: int
