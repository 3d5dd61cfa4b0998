"""Shuffled orders that are computed, not stored."""

from __future__ import annotations

from collections import Counter

import pytest

from vllm_dynin.training_ext.data.keyed import BlockPermutation, Permutation, draw, uniform


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1025, 4096])
def test_an_order_has_every_index_once(size: int) -> None:
    order = Permutation(size, "seed", 0)
    assert sorted(order(place) for place in range(size)) == list(range(size))


@pytest.mark.parametrize(("size", "block"), [(1, 4), (7, 3), (9, 3), (10, 3), (100, 7), (5, 100)])
def test_blocks_have_every_index_once_and_stay_together(size: int, block: int) -> None:
    order = BlockPermutation(size, block, "seed")
    indices = [order(place) for place in range(size)]
    assert sorted(indices) == list(range(size))
    blocks = [index // block for index in indices]
    entered = [b for place, b in enumerate(blocks) if place == 0 or blocks[place - 1] != b]
    assert len(entered) == len(set(blocks)), "a block was left and entered again"


@pytest.mark.parametrize("size", [5, 64, 1000])
def test_every_index_comes_as_often_at_every_place(size: int) -> None:
    """Frequencies over epochs: chi-square of the first place and of the first step."""
    num_epochs = 40 * size if size < 100 else 5000
    first: Counter[int] = Counter()
    steps: Counter[int] = Counter()
    for epoch in range(num_epochs):
        order = Permutation(size, 7, "epoch", epoch)
        first[order(0)] += 1
        steps[(order(1) - order(0)) % size] += 1
    for counts, cells in ((first, size), (steps, size - 1)):
        expected = num_epochs / cells
        chi_square = sum((counts[i] - expected) ** 2 / expected for i in counts)
        chi_square += expected * (cells - len(counts))
        # Mean cells - 1, standard deviation sqrt(2 · cells): six of them above it do not happen.
        assert chi_square < cells + 6 * (2 * cells) ** 0.5


def test_orders_differ_by_key_and_repeat() -> None:
    def order(*key: int | str) -> list[int]:
        return [Permutation(50, *key)(place) for place in range(50)]

    assert order(1, "a") == order(1, "a")
    assert len({tuple(order(seed, name)) for seed in range(5) for name in "ab"}) == 10


def test_a_range_is_required() -> None:
    with pytest.raises(ValueError, match="size=0"):
        Permutation(0)
    with pytest.raises(IndexError, match="position 3 of an order of 3"):
        Permutation(3)(3)
    with pytest.raises(ValueError, match="block=0"):
        BlockPermutation(3, 0)


def test_draws_are_known_numbers() -> None:
    """The same on every machine: a checkpoint must go on elsewhere with the same data."""
    # printf 'a\x1f1' | b2sum -l 64
    assert draw("a", 1).to_bytes(8, "little").hex() == "8181c16b4ad83cc1"
    assert uniform("a", 2) == pytest.approx(0.31310504152465, abs=1e-12)
    assert [Permutation(10, 0)(place) for place in range(10)] == [9, 2, 6, 7, 4, 3, 1, 0, 8, 5]
