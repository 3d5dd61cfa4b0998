"""Canvases of all running requests on the device, in memory that is taken once."""

from __future__ import annotations

import torch

from vllm_dynin.kernels.step_table import SlotState
from vllm_dynin.kernels.unmask import Canvases


class CanvasMemory:
    """Lines of cells, one a request: its canvas first, whatever the driver likes behind it.

    Args:
        num_requests: S lines.
        width: cells of a line.
        num_rows: wanted rows of the largest step.
        device: where the model runs.
    """

    def __init__(self, num_requests: int, width: int, num_rows: int, device: torch.device) -> None:
        self.device, self.width = device, width
        self.ids_SW = torch.zeros(num_requests, width, dtype=torch.int64, device=device)
        self.flat = self.ids_SW.view(-1)
        """int64 [S * W]: the same cells."""
        self._states_SW = torch.zeros(num_requests, width, dtype=torch.uint8, device=device)
        self.canvases = Canvases(self.ids_SW, self._states_SW)
        self.numbers = torch.arange(max(num_rows, width), device=device)
        """0, 1, 2, …"""

    def enter(self, line: int, cells: list[int], num_slots: int, mask_id: int) -> None:
        """Write a line; its first `num_slots` cells are a canvas."""
        ids = torch.tensor(cells)
        states = (ids[:num_slots] == mask_id).to(torch.uint8) * int(SlotState.MASKED)
        self.ids_SW[line, : len(cells)] = ids.to(self.device)
        self._states_SW[line, :num_slots] = states.to(self.device)
