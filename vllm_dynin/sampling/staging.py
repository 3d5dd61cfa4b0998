"""What the host knows of a step, sent to the device in one copy."""

from __future__ import annotations

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_WORD = 8
_DTYPES = {"i4": torch.int32, "i8": torch.int64, "f8": torch.float64}


class Staging:
    """Blocks of bytes on the host and as many on the device, used in turns.

    Arrays are put one after another into a block of the host, `send` copies them all, and each is
    then a view of the block of the device. Blocks alternate, because the copies of a step may still
    be read when the next one is prepared.

    Args:
        num_bytes: of a block; a step that needs more makes larger blocks.
        device: where they are sent.
        depth: blocks that are used in turns.
    """

    def __init__(self, num_bytes: int, device: torch.device, depth: int = 2) -> None:
        self._device, self._depth = device, depth
        self._turn = self._num_used = 0
        self._pieces: list[NDArray[Any]] = []
        self._make(num_bytes)

    def _make(self, num_bytes: int) -> None:
        num_words = -(-num_bytes // _WORD)
        pins = self._device.type == "cuda"
        self._host = [
            torch.zeros(num_words, dtype=torch.int64, pin_memory=pins) for _ in range(self._depth)
        ]
        self._sent = [torch.zeros_like(block, device=self._device) for block in self._host]

    def begin(self) -> None:
        """Start a step, in the next block."""
        self._turn = (self._turn + 1) % self._depth
        self._num_used = 0
        self._pieces = []

    def put(self, array: NDArray[Any]) -> Staged:
        """Add an array of int32, int64 or float64, of any shape."""
        first = self._num_used
        self._num_used += -(-array.nbytes // _WORD)
        self._pieces.append(array)
        return Staged(self, first, array.shape, _DTYPES[array.dtype.str[1:]])

    def send(self) -> None:
        """Copy everything that was put, without waiting for the device."""
        if not self._num_used:
            return
        if self._num_used > len(self._host[0]):
            self._make(2 * _WORD * self._num_used)
        block = self._host[self._turn].numpy()
        first = 0
        for piece in self._pieces:
            stop = first + -(-piece.nbytes // _WORD)
            block[first:stop].view(piece.dtype)[: piece.size] = piece.reshape(-1)
            first = stop
        used = slice(0, self._num_used)
        self._sent[self._turn][used].copy_(self._host[self._turn][used], non_blocking=True)

    def sent(self, first: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A view of what has arrived at a word of the block."""
        size = math.prod(shape)
        num_words = -(-size * dtype.itemsize // _WORD)
        words = self._sent[self._turn][first : first + num_words]
        if dtype is not torch.int64:
            words = words.view(dtype)[:size]
        return words.view(shape) if len(shape) > 1 else words


class Staged:
    """An array on its way; `tensor` is it on the device, once it is sent and until `begin`."""

    def __init__(
        self, staging: Staging, first: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self._staging, self._first, self._shape, self._dtype = staging, first, shape, dtype
        self._found: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        """The array, a view of the device's block."""
        if self._found is None:
            self._found = self._staging.sent(self._first, self._shape, self._dtype)
        return self._found
