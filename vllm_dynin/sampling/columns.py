"""The part of the vocabulary a region may be filled from, as logit columns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Columns:
    """Allowed ids as half-open ranges, laid side by side, less a few excluded ids.

    Args:
        ranges: `(first, stop)` pairs, in the order of the columns; not empty, not overlapping.
        excluded: ids inside the ranges that keep a column but are never proposed.

    Raises:
        ValueError: a range is empty or negative.
    """

    ranges: tuple[tuple[int, int], ...]
    excluded: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.ranges or any(not 0 <= first < stop for first, stop in self.ranges):
            raise ValueError(f"column ranges {self.ranges} must be non-empty (first, stop) pairs")

    @property
    def width(self) -> int:
        """Number of columns K."""
        return sum(stop - first for first, stop in self.ranges)

    def ids(self, device: torch.device) -> Tensor:
        """int64 [K]: the token id of each column. Shared between calls: do not modify."""
        return _column_ids(self, device)

    def forbidden(self, device: torch.device) -> Tensor | None:
        """Bool [K]: the excluded columns; None if there are none. Shared: do not modify."""
        return _forbidden(self, device) if self.excluded else None

    def forbid_excluded(self, logits_RK: Tensor) -> Tensor:
        """Set the excluded columns to -inf, in place, and return the logits."""
        for column in _excluded_columns(self):
            logits_RK[:, column] = -torch.inf
        return logits_RK


@cache
def _column_ids(columns: Columns, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # training in the same process indexes with it too
        parts = [torch.arange(first, stop, device=device) for first, stop in columns.ranges]
        return torch.cat(parts)


@cache
def _forbidden(columns: Columns, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        is_forbidden = torch.zeros(columns.width, dtype=torch.bool)
        is_forbidden[_excluded_columns(columns)] = True
        return is_forbidden.to(device)


@cache
def _excluded_columns(columns: Columns) -> list[int]:
    ids = _column_ids(columns, torch.device("cpu"))
    return [int((ids == token_id).nonzero()) for token_id in columns.excluded]
