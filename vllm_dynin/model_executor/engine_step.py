"""One step of the engine: what the host knows of it, sent to the device in one copy.

Laid out when the runner asks for attention metadata, which is before the forward and before
anything of the step is on the device. What is known beforehand goes along: the rows' cells and
positions, the requests that decode together, and which slots become final.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vllm_dynin.model_executor.canvas_store import CanvasStore
from vllm_dynin.model_executor.slot import DenoisingRequest
from vllm_dynin.sampling.batched import BatchedStep
from vllm_dynin.sampling.staging import Staging

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.input_batch import InputBatch


class EngineStep:
    """Of the denoising requests of a batch.

    Args:
        requests: in batch order; may be empty.
        batch: the runner's.
        store: where the canvases are.
        staging: has begun; it is sent before `prepare` is called.
    """

    def __init__(
        self,
        requests: Sequence[DenoisingRequest],
        batch: InputBatch,
        store: CanvasStore,
        staging: Staging,
    ) -> None:
        self.requests = requests
        self.store = store
        self.alone = [request for request in requests if request.slot.decoder is not None]
        """Those that their decoders decode, one by one."""
        self.wanted: list[Tensor] = []
        """Slots whose logits they asked for; set by `prepare`."""
        self.together = [request for request in requests if request.slot.decoder is None]
        """Those that are decoded in one batch."""
        self.batched: BatchedStep | None = None
        if self.together:
            parts = [request.slot.request_step(request.first) for request in self.together]
            mask_id = self.together[0].slot.plan.canvas.mask_id
            self.batched = BatchedStep(parts, mask_id, store, staging)
        if requests:
            tables = [request.slot.row_table for request in requests]
            places = [
                np.arange(request.first, request.first + request.slot.num_rows)
                for request in requests
            ]
            rows = np.concatenate([np.concatenate(tables, axis=1), [np.concatenate(places)]])
            self._rows = staging.put(rows)
        self._lay_out_commits(batch, staging)

    def _lay_out_commits(self, batch: InputBatch, staging: Staging) -> None:
        """What the step gives out, as far as that is known now."""
        # Committed tokens, and rejected ones. These are the whole query: the device-side count of
        # computed tokens stays where it is, so the next step computes the same rows again. The
        # exception is the step after which a constant second stream counts as computed.
        self.counts = np.zeros((2, batch.num_reqs), dtype=np.int32)
        self.counts[1] = np.diff(batch.query_start_loc_np[: batch.num_reqs + 1])
        self.first_cells = np.zeros(batch.num_reqs, dtype=np.int64)
        for request in self.requests:
            if request.slot.keeps_next:
                self.counts[1, request.row] -= request.slot.layout.conditional_start
        for request in self.together:
            slot = request.slot
            self.counts[0, request.row] = slot.steps[-1].num_committed - slot.num_emitted
            self.first_cells[request.row] = slot.first_cell + slot.num_emitted
        self._counts = staging.put(self.counts)
        self._first_cells = staging.put(self.first_cells)

    def prepare(self, batch: InputBatch) -> None:
        """Write ids and positions into the runner's own buffers; find the wanted rows.

        In place, because captured graphs read those buffers. The runner has computed KV slots from
        row numbers before, so positions are free to be what the model was trained on.
        """
        if not self.requests:
            return
        cells_T, positions_T, places_T = self._rows.tensor
        ids_T = self.store.flat[cells_T].to(batch.input_ids.dtype)
        batch.input_ids.index_copy_(0, places_T, ids_T)
        batch.positions.index_copy_(0, places_T, positions_T)
        if self.batched is not None:
            self.batched.find()
        decoders = [request.slot.decoder for request in self.alone]
        self.wanted = [decoder.wanted() for decoder in decoders if decoder is not None]

    def committed(self) -> tuple[Tensor, Tensor, Tensor]:
        """After the step: ids that became final, and how many were given out and rejected.

        Returns:
            int32 [B, width] of which the first ones of a row count, int32 [B], int32 [B].
        """
        counts_2B, first_cells_B = self._counts.tensor, self._first_cells.tensor
        if self.alone:  # only now are theirs known
            for request in self.alone:
                slot, decoder = request.slot, request.slot.decoder
                assert decoder is not None
                self.counts[0, request.row] = max(0, decoder.num_committed - slot.num_emitted)
                self.first_cells[request.row] = slot.first_cell + slot.num_emitted
                slot.num_emitted = max(slot.num_emitted, decoder.num_committed)
            device = self.store.device
            counts_2B = torch.from_numpy(self.counts).to(device, non_blocking=True)
            first_cells_B = torch.from_numpy(self.first_cells).to(device, non_blocking=True)
        for request in self.together:
            request.slot.num_emitted = request.slot.steps.pop().num_committed
        width = int(self.counts[0].max(initial=0))
        if width == 0:
            nothing = self.store.nothing[: len(first_cells_B)]
            return nothing, counts_2B[0], counts_2B[1]
        cells = first_cells_B[:, None] + self.store.numbers[:width]
        ids = self.store.flat[cells.clamp_(max=len(self.store.flat) - 1)]
        return ids.to(torch.int32), counts_2B[0], counts_2B[1]
