"""Keys of the draws, and what they are drawn from."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_dynin.sampling.noise import StepDraws, mix_key

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


def draws(*key, slots=range(8)):
    return StepDraws(*key).at(torch.tensor(slots)).uniform(5)


def test_draws_depend_on_the_whole_key_and_nothing_else():
    first = draws(5, 1, 2, 3)
    torch.manual_seed(99)
    torch.rand(100)
    assert torch.equal(first, draws(5, 1, 2, 3))
    others = [draws(6, 1, 2, 3), draws(5, 2, 2, 3), draws(5, 1, 3, 3), draws(5, 1, 2, 4)]
    others += [draws(5, 2, 1, 3), draws(5, 1, 3, 2), draws(-5, 1, 2, 3), draws(5 + 2**32, 1, 2, 3)]
    for one, other in itertools.combinations([first, *others], 2):
        assert not (one == other).any()


def test_a_slot_has_its_draws_wherever_its_row_lies():
    whole = draws(5, 0, 0, 0)
    assert torch.equal(draws(5, 0, 0, 0, slots=[6, 1]), whole[[6, 1]])
    assert len(whole.unique()) == whole.numel()
    ranking = StepDraws(5, 0, 0, 0).at(torch.arange(8)).ranking(torch.float64)
    assert not (ranking[:, None] == whole).any()  # other draws than those of the proposals


def test_negative_and_huge_seeds_work():
    assert not torch.equal(draws(-1, 0, 0, 0), draws(2**63 - 1, 0, 0, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_ranking_draws_look_like_those_of_torch(dtype):
    """As many values between 0 and 1, and never 1, which rounding would give."""
    found = StepDraws(3, 0, 0, 0).at(torch.arange(200_000)).ranking(dtype)
    assert found.dtype == dtype
    assert found.min() >= 0 and found.max() < 1
    tenths = torch.bincount((found.double() * 10).long(), minlength=10)
    if dtype != torch.bfloat16:  # multiples of 1/256 do not fill tenths evenly
        assert bool(((tenths - 20_000).abs() < 5 * math.sqrt(20_000 * 0.9)).all())
    else:
        counts = torch.bincount((found.double() * 256).long(), minlength=256)
        assert len(counts) == 256
        assert bool(((counts - 781.25).abs() < 5 * math.sqrt(781.25)).all())


def test_exponential_draws_have_the_distribution_and_its_far_end():
    """Quantiles of 2,000,000 draws, down to the smallest, which decide an arg-max of p / e."""
    num = 2_000_000
    found = StepDraws(3, 0, 0, 0).at(torch.arange(num // 1000)).exponential(1000, torch.float32)
    found = found.flatten().double()
    assert found.min() > 0
    assert abs(found.mean() - 1) < 5 / math.sqrt(num)
    for p in (1e-5, 1e-4, 1e-3, 0.1, 0.5, 0.9, 0.999):
        below = (found < -math.log1p(-p)).sum()
        assert abs(below - num * p) < 5 * math.sqrt(num * p * (1 - p))
