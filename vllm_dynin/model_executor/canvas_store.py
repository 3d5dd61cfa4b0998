"""Ids of all running requests on the device, in memory that is taken once.

Each of the runner's request slots has a line of *cells*: first its canvas, then one cell that holds
the mask id, then the rows in front of the canvas. So a row of a step is a cell to read: both
streams of a guided request read the one canvas, and slots that the second stream must not see read
the mask.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_dynin.canvas import Canvas
from vllm_dynin.model_executor.row_layout import RowLayout, prompt_rows, row_positions
from vllm_dynin.sampling.canvas_memory import CanvasMemory


class CanvasStore(CanvasMemory):
    """Canvases of the requests, and what else of them outlives a step.

    Args:
        num_requests: request slots of the runner.
        num_rows: rows of the longest request.
        step_rows: rows of the largest step.
        device: where the model runs.
    """

    def __init__(
        self, num_requests: int, num_rows: int, step_rows: int, device: torch.device
    ) -> None:
        super().__init__(num_requests, num_rows + 1, step_rows, device)
        self.kept = KeptRows(device)
        self.nothing = torch.zeros(num_requests, 1, dtype=torch.int32, device=device)
        """What a step gives out that makes nothing final."""

    def enter_request(
        self, index: int, canvas: Canvas, layout: RowLayout, committed: tuple[int, ...]
    ) -> None:
        """Write all cells of a request.

        Args:
            index: the runner's request slot.
            canvas: of the request.
            layout: of its rows.
            committed: ids that were given out before it was preempted.
        """
        slots = (*committed, *canvas.slots[len(committed) :])
        cells = [*slots, canvas.mask_id, *prompt_rows(canvas, layout)]
        self.enter(index, cells, canvas.num_slots, canvas.mask_id)


def row_table(canvas: Canvas, layout: RowLayout) -> NDArray[np.int64]:
    """[2, rows]: of each row of a request its cell, counted from the first, and its position."""
    num_slots = canvas.num_slots
    cells = np.arange(layout.num_rows) + (num_slots + 1)
    cells[layout.canvas :] = np.arange(num_slots)
    if canvas.unconditional is not None:
        follows = np.array(canvas.unconditional.follows)
        seen = np.where(follows, np.arange(num_slots), num_slots)
        cells[layout.unconditional_canvas : layout.unconditional_stop] = seen
    return np.stack([cells, np.array(row_positions(canvas, layout))])


class KeptRows:
    """Hidden states of second streams that never change, of all requests that have one.

    Args:
        device: where the model runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.hidden_PD = torch.zeros(0, 0, device=device)
        self._taken: dict[int, int] = {}  # first row → number of rows

    def put(self, hidden_SD: Tensor) -> int:
        """Copy the hidden states of a request; returns the first of their rows here."""
        first = 0
        for start in sorted(self._taken):  # the first gap that is wide enough
            if first + len(hidden_SD) <= start:
                break
            first = max(first, start + self._taken[start])
        stop = first + len(hidden_SD)
        if stop > len(self.hidden_PD):
            grown = hidden_SD.new_zeros(max(stop, 2 * len(self.hidden_PD)), hidden_SD.shape[1])
            grown[: len(self.hidden_PD)] = self.hidden_PD.view(-1, hidden_SD.shape[1])
            self.hidden_PD = grown
        self.hidden_PD[first:stop] = hidden_SD
        self._taken[first] = len(hidden_SD)
        return first

    def free(self, first: int) -> None:
        """Give rows back; `first` is what `put` returned."""
        del self._taken[first]
