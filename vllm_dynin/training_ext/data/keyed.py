"""Random choices that depend on their key alone, so that any one of them can be made again.

A shuffled order is never held in memory or written into a checkpoint: which row comes at a position
is computed. The numbers come from BLAKE2 and integer arithmetic, so they are the same on every
machine and with every version of NumPy and PyTorch.
"""

from __future__ import annotations

import hashlib

Key = int | str

_WORD = 0xFFFF_FFFF_FFFF_FFFF
_NUM_ROUNDS = 6


def draw(*key: Key) -> int:
    """An integer in 0 .. 2**64 - 1 that is a function of the key."""
    text = "\x1f".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def uniform(*key: Key) -> float:
    """A number in [0, 1) that is a function of the key."""
    return (draw(*key) >> 11) / (1 << 53)


class Permutation:
    """A random order of 0 .. size - 1 in constant memory: position → index, one to one.

    A balanced Feistel network over the next even power of two; results outside the range are
    sent through it again until one is inside (cycle walking), four times at most on average.

    Args:
        size: at least 1.
        key: equal keys give equal orders.

    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002, method 2.
    """

    def __init__(self, size: int, *key: Key) -> None:
        if size < 1:
            raise ValueError(f"size={size}; an order takes at least one element")
        self.size = size
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._round_keys = [draw(*key, "round", number) for number in range(_NUM_ROUNDS)]

    def __call__(self, position: int) -> int:
        """The index at a position."""
        if not 0 <= position < self.size:
            raise IndexError(f"position {position} of an order of {self.size}")
        index = self._once(position)
        while index >= self.size:
            index = self._once(index)
        return index

    def _once(self, value: int) -> int:
        bits = self._half_bits
        mask = (1 << bits) - 1
        left, right = value >> bits, value & mask
        for key in self._round_keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return left << bits | right


class BlockPermutation:
    """A random order that stays inside a block of neighbours until the block is used up.

    For rows that are costly to reach one by one: the row groups of a Parquet file, the samples of
    a tar. The blocks come in random order, and so do the rows of each.

    Args:
        size: at least 1.
        block: neighbours in a block; the last one may be smaller.
        key: equal keys give equal orders.

    Raises:
        ValueError: block is below 1.
    """

    def __init__(self, size: int, block: int, *key: Key) -> None:
        if block < 1:
            raise ValueError(f"block={block} must be at least 1")
        self.size, self._block, self._key = size, block, key
        self._num_whole, self._rest = divmod(size, block)
        num_blocks = self._num_whole + bool(self._rest)
        self._order = Permutation(num_blocks, *key, "blocks")
        # The short block takes fewer positions; those behind it begin earlier.
        self._short_at = num_blocks
        if self._rest:
            self._short_at = next(p for p in range(num_blocks) if self._order(p) == num_blocks - 1)

    def __call__(self, position: int) -> int:
        """The index at a position."""
        if not 0 <= position < self.size:
            raise IndexError(f"position {position} of an order of {self.size}")
        end_of_short = self._short_at * self._block + self._rest
        shift = self._block - self._rest if position >= end_of_short else 0
        place, inside = divmod(position + shift, self._block)
        block = self._order(place)
        length = self._block if block < self._num_whole else self._rest
        return block * self._block + Permutation(length, *self._key, "block", block)(inside)


def _mix(value: int) -> int:
    """The output function of splitmix64."""
    value = (value + 0x9E37_79B9_7F4A_7C15) & _WORD
    value = ((value ^ value >> 30) * 0xBF58_476D_1CE4_E5B9) & _WORD
    value = ((value ^ value >> 27) * 0x94D0_49BB_1331_11EB) & _WORD
    return value ^ value >> 31
