"""Keys of the draws."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_dynin.sampling.noise import mix_key, step_generator

CPU = torch.device("cpu")
INTS = st.integers(-(2**63), 2**64)


def splitmix64_sequence(state, count):
    """Vigna's splitmix64, stated again: the outputs after a start state."""
    mask = (1 << 64) - 1
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield z ^ (z >> 31)


def test_first_round_is_splitmix64():
    # Published first output for seed 1234567; our state starts one increment ahead of 0.
    assert next(splitmix64_sequence(1234567, 1)) == 6457827717110365317
    start = 0x9E3779B97F4A7C15
    assert mix_key(1234567) == next(splitmix64_sequence((start + 1234567) % 2**64, 1)) >> 1


def test_order_and_number_of_values_matter():
    keys = [mix_key(), mix_key(0), mix_key(0, 0), mix_key(1, 2), mix_key(2, 1), mix_key(1, 2, 0)]
    assert len(set(keys)) == len(keys)


@given(st.lists(INTS, min_size=1, max_size=4))
def test_keys_are_seeds_of_63_bits_and_repeatable(values):
    key = mix_key(*values)
    assert 0 <= key < 2**63
    assert key == mix_key(*values)


def test_no_two_steps_of_near_seeds_share_a_key():
    places = itertools.product(range(8), range(16), range(16), range(4))
    keys = {mix_key(*place) for place in places}
    assert len(keys) == 8 * 16 * 16 * 4


def test_key_bits_are_fair():
    """Each bit of the keys of 4,096 neighbouring steps is set about half the time (5 sigma)."""
    keys = [mix_key(7, block, step) for block in range(64) for step in range(64)]
    for bit in range(63):
        ones = sum(key >> bit & 1 for key in keys)
        assert abs(ones - 2048) < 5 * 32


def draws(*key):
    return torch.rand(8, dtype=torch.float64, generator=step_generator(CPU, *key))


def test_draws_depend_on_the_whole_key_and_nothing_else():
    first = draws(5, 2, 3)
    torch.manual_seed(99)
    torch.rand(100)
    assert torch.equal(first, draws(5, 2, 3, 0))
    others = [draws(6, 2, 3), draws(5, 3, 3), draws(5, 2, 4), draws(5, 2, 3, 1), draws(5, 3, 2)]
    assert not any(torch.equal(first, other) for other in others)


def test_negative_and_huge_seeds_work():
    assert not torch.equal(draws(-1, 0, 0), draws(2**63 - 1, 0, 0))
