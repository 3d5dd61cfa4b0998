"""One running request on a worker: its canvas, its rows, and the media it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_dynin.config import LLaDAConfig
from vllm_dynin.model_executor.row_layout import RowLayout, prompt_rows, row_positions
from vllm_dynin.model_executor.step_logits import WantedRows
from vllm_dynin.planning import PlanRequest, make_plan
from vllm_dynin.sampling.decided_steps import DecidedSteps
from vllm_dynin.sampling.decoder import CanvasDecoder
from vllm_dynin.sampling.tiles import LogitRows


class Slot:
    """State of one request, complete once its media are encoded.

    Args:
        request: what its plan is made from.
        config: of the checkpoint.
        block_size: rows of a KV block.
        device: where the model runs.
        committed: ids given out before the request was preempted.
        media: content hashes of its media, in order.
        trajectory: where to note what each denoising step decides, or None.
    """

    def __init__(
        self,
        request: PlanRequest,
        config: LLaDAConfig,
        block_size: int,
        device: torch.device,
        committed: tuple[int, ...] = (),
        media: Sequence[str] = (),
        trajectory: DecidedSteps | None = None,
    ) -> None:
        self.num_emitted = len(committed)
        self._request, self._config, self._block_size = request, config, block_size
        self._device, self._committed = device, committed
        self._codes: list[Tensor | None] = [None] * len(media)
        self._media = tuple(media)
        self._trajectory = trajectory
        self.is_ready = False
        self._unconditional_SD: Tensor | None = None
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
        plan = make_plan(self._request.with_media(codes), self._config)
        self.decoder = CanvasDecoder(plan, self._device, self._committed)
        self.layout = RowLayout.of(
            plan.canvas, self._block_size, conditional_start=self._planned_start()
        )
        positions = row_positions(plan.canvas, self.layout)
        self._positions = torch.tensor(positions, device=self._device)
        rows = [*prompt_rows(plan.canvas, self.layout), *plan.canvas.slots]
        self._ids = torch.tensor(rows, device=self._device)
        self.is_ready = True
        if self._trajectory is not None:
            self._trajectory.begin(self.decoder.ids, plan.canvas.mask_id)

    def _planned_start(self) -> int:
        """Where the scheduler, which knows no codes, has put the conditional stream."""
        if not self._request.media:
            return 0
        canvas = make_plan(self._request, self._config).canvas
        return RowLayout.of(canvas, self._block_size).conditional_start

    @property
    def num_skipped(self) -> int:
        """Rows, from the first on, that a step does not compute: a constant second stream."""
        return 0 if self._unconditional_SD is None else self.layout.conditional_start

    @property
    def num_rows(self) -> int:
        """Rows of a step."""
        return self.layout.num_rows - self.num_skipped

    def keep_unconditional(self, hidden_TD: Tensor, first_row: int) -> bool:
        """After a step: keep the hidden states of a second stream that never changes.

        Args:
            hidden_TD: hidden states of the step.
            first_row: first of this request's rows in it.

        Returns:
            Whether they were kept now, so that the next step starts at the conditional stream.
        """
        canvas = self.decoder.plan.canvas
        if self._unconditional_SD is not None or not canvas.is_unconditional_constant:
            return False
        layout = self.layout
        first = first_row + layout.unconditional_canvas
        # A copy, because the runner may reuse its buffer.
        self._unconditional_SD = hidden_TD[first : first + layout.num_slots].clone()
        return True

    def step(self, slots: Tensor, logits: LogitRows) -> None:
        """One denoising step, given the guided logits of the wanted slots."""
        self.decoder.step(slots, logits)
        if self._trajectory is not None:
            self._trajectory.record(self.decoder.ids, self.decoder.plan.canvas.mask_id)

    def ids(self) -> Tensor:
        """int64 [num_rows]: ids of a step's rows as the canvas stands now."""
        layout = self.layout
        self._ids[layout.canvas :] = self.decoder.ids
        if layout.unconditional_stop:
            unconditional = self.decoder.unconditional_ids()
            self._ids[layout.unconditional_canvas : layout.unconditional_stop] = unconditional
        return self._ids[self.num_skipped :]

    def positions(self) -> Tensor:
        """int64 [num_rows]: position ids of a step's rows."""
        return self._positions[self.num_skipped :]

    def wanted_rows(self, slots: Tensor, first_row: int) -> WantedRows:
        """Rows of the step that hold `slots`, for a request whose rows start at `first_row`."""
        plan = self.decoder.plan
        rows = slots + (first_row + self.layout.canvas - self.num_skipped)
        if plan.canvas.unconditional is None:
            return WantedRows(rows=rows, columns=self.decoder.columns)
        kept = self._unconditional_SD
        row = first_row + self.layout.unconditional_canvas
        return WantedRows(
            rows=rows,
            columns=self.decoder.columns,
            unconditional_rows=slots + row if kept is None else None,
            unconditional_RD=None if kept is None else kept[slots],
            guidance_scale=plan.guidance_scale,
            form=plan.canvas.unconditional.form,
        )


@dataclass(frozen=True)
class DenoisingRequest:
    """A request of the batch that is past its prompt.

    Args:
        row: its place in the batch.
        slot: its state.
        first: first row of the step that is its own.
        wanted: slots whose logits were asked for.
    """

    row: int
    slot: Slot
    first: int
    wanted: Tensor
