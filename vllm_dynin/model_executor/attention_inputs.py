"""What the attention backend is given: each stream of a request is a sequence of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata

from vllm_dynin.model_executor.slot import DenoisingRequest
from vllm_dynin.sampling.staging import Staged, Staging

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.input_batch import InputBatch


class AttentionInputs:
    """Query ranges, lengths and block tables of the sequences of a step, never causal.

    Args:
        batch: the runner's.
        requests: the denoising ones, in batch order; each other request is one sequence.
        table: int32 [>= requests, blocks]: the runner's block table of the batch.
        table_unit: rows of the KV cache that one of its entries stands for.
        staging: has begun; it is sent before `metadata` is called.
    """

    def __init__(
        self,
        batch: InputBatch,
        requests: Iterable[DenoisingRequest],
        table: Tensor,
        table_unit: int,
        staging: Staging,
    ) -> None:
        self._batch, self._table, self._unit = batch, table, table_unit
        self._bounds, self._lengths = [0], list[int]()
        self._rows, self._shifts = list[int](), list[int]()
        denoising = {request.row: request for request in requests}
        ends = batch.query_start_loc_np.tolist()
        for row in range(batch.num_reqs):
            first, stop = ends[row], ends[row + 1]
            if row in denoising:
                self._add_streams(denoising[row], first, stop)
            else:
                self._add(row, stop, stop - first)
        self._bounds_np = np.array(self._bounds, dtype=np.int32)
        self._lengths_np = np.array(self._lengths, dtype=np.int32)
        self._staged_bounds = staging.put(self._bounds_np)
        self._staged_lengths = staging.put(self._lengths_np)
        self._entries: Staged | None = None
        if any(self._shifts) or self._rows != list(range(batch.num_reqs)):
            width = table.shape[1]
            columns = np.arange(width) + np.array(self._shifts)[:, None]
            entries = np.minimum(columns, width - 1) + width * np.array(self._rows)[:, None]
            self._entries = staging.put(entries)

    def _add_streams(self, request: DenoisingRequest, first: int, stop: int) -> None:
        row, slot, layout = request.row, request.slot, request.slot.layout
        if slot.num_skipped == 0 and layout.unconditional_stop:
            self._add(row, first + layout.unconditional_stop, layout.unconditional_stop)
        if slot.num_skipped == 0 and layout.conditional_start > layout.unconditional_stop:
            # padding: computed, because it is scheduled; never read
            self._add(row, first + layout.conditional_start, layout.conditional_start)
        length = layout.num_rows - layout.conditional_start
        shift = layout.conditional_start // self._unit
        self._add(row, first + slot.num_rows, length, shift)
        if first + slot.num_rows < stop:
            # stand-ins of a medium that has fewer codes than were planned for
            self._add(row, stop, stop - first)

    def _add(self, row: int, stop: int, length: int, shift: int = 0) -> None:
        """Append the sequence of queries up to `stop`, whose KV starts at block `shift`."""
        self._bounds.append(stop)
        self._lengths.append(length)
        self._rows.append(row)
        self._shifts.append(shift)

    def _block_table(self) -> Tensor:
        """int32 [sequences, blocks]: each sequence's blocks, from its first on."""
        if self._entries is None:
            return self._table[: len(self._rows)]
        return self._table.reshape(-1)[self._entries.tensor]

    def metadata(
        self, slot_mappings: Tensor, attn_groups: Any, kv_cache_config: Any
    ) -> dict[str, Any]:
        """As the layers want it, by their names."""
        return build_attn_metadata(
            attn_groups=attn_groups,
            num_reqs=len(self._lengths),
            num_tokens=self._batch.num_tokens,
            query_start_loc_gpu=self._staged_bounds.tensor,
            query_start_loc_cpu=torch.from_numpy(self._bounds_np),
            max_query_len=int(np.diff(self._bounds_np).max()),
            seq_lens=self._staged_lengths.tensor,
            max_seq_len=max(self._lengths),
            block_tables=(self._block_table(),),
            slot_mappings=slot_mappings,
            kv_cache_config=kv_cache_config,
            seq_lens_cpu_upper_bound=torch.from_numpy(self._lengths_np),
            causal=False,
        )
