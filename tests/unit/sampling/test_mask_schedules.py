"""Mask schedules, mask counts and noise scales: the numbers of the original."""

import math

import pytest
import torch

from vllm_dynin.canvas import Parity
from vllm_dynin.sampling.maskgit import (
    MaskGitOptions,
    noise_scale,
    num_to_remask,
    scheduled_mask_count,
)
from vllm_dynin.sampling.schedules import mask_ratio

COSINE_16 = [0.9951847, 0.9807853, 0.9569404, 0.9238795, 0.8819212, 0.8314696, 0.7730104]
COSINE_16 += [0.7071068, 0.6343933, 0.5555702, 0.4713967, 0.3826834, 0.2902846, 0.1950902]
COSINE_16 += [0.0980171, -4.371e-8]


def ratios(schedule, *times):
    return mask_ratio(schedule, torch.tensor(times)).tolist()


def test_cosine() -> None:
    found = ratios("cosine", *[k / 16 for k in range(1, 17)])
    assert found == pytest.approx(COSINE_16, abs=1e-7)
    assert found[-1] < 0


def test_other_schedules() -> None:
    assert ratios("linear", 0.0, 0.25, 1.0) == pytest.approx([1.0, 0.75, 1e-6])
    assert ratios("pow2", 0.0, 0.5, 1.0) == pytest.approx([1.0, 0.75, 1e-6])
    assert ratios("pow0.5", 0.25, 1.0) == pytest.approx([0.5, 1e-6])
    assert ratios("pow.5", 0.25) == pytest.approx([0.5])

    def logistic(x):
        return 1 / (1 + math.exp(-x))

    spread = logistic(3) - logistic(-3)
    expected = [(logistic(3) - logistic(6 * t - 3)) / spread for t in (0.0, 0.2, 0.5, 0.9)]
    assert ratios("sigmoid", 0.0, 0.2, 0.5, 0.9) == pytest.approx(expected, rel=1e-5)
    assert ratios("sigmoid", 0.5, 1.0) == pytest.approx([0.5, 1e-6])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "pow3", "sigmoid"])
def test_schedules_fall_from_one(schedule) -> None:
    found = mask_ratio(schedule, torch.linspace(0, 1, 101))
    assert found[0] == 1
    assert (found.diff() <= 0).all()
    assert found[-1].abs() < 2e-6


@pytest.mark.parametrize("schedule", ["", "Cosine", "pow", "pow0", "pow0.0", "pow-1", "pow1e3"])
def test_unknown_schedules_are_refused(schedule) -> None:
    with pytest.raises(ValueError, match="use cosine, linear, sigmoid, or pow"):
        mask_ratio(schedule, torch.tensor(0.5))
    with pytest.raises(ValueError, match="mask schedule"):  # a request's options, at admission
        MaskGitOptions(num_steps=4, schedule=schedule)


def mask_lengths(num_slots, num_steps, schedule="cosine", parity=Parity.REFERENCE):
    """Masked slots after each step, were the last step to mask as well."""
    counts, num_masked = [], num_slots
    for step in range(num_steps):
        wanted = scheduled_mask_count(num_slots, step, num_steps, schedule)
        num_masked = num_to_remask(num_masked, wanted, parity)
        counts.append(num_masked)
    return counts


def test_mask_lengths_of_the_original() -> None:
    assert mask_lengths(1024, 16) == (
        [1019, 1004, 979, 946, 903, 851, 791, 724, 649, 568, 482, 391, 297, 199, 100, 1]
    )
    twenty = mask_lengths(1024, 20)
    assert twenty[:10] == [1020, 1011, 995, 973, 946, 912, 873, 828, 778, 724]
    assert twenty[10:] == [665, 601, 535, 464, 391, 316, 239, 160, 80, 1]
    assert mask_lengths(1024, 18) == (
        [1020, 1008, 989, 962, 928, 886, 838, 784, 724, 658, 587, 511, 432, 350, 265, 177, 89, 1]
    )
    many = mask_lengths(441, 64)
    assert many[:10] == [440, 439, 438, 437, 436, 435, 434, 432, 430, 427]
    assert many[-5:] == [43, 32, 21, 10, 1]
    assert mask_lengths(8, 4) == [7, 5, 3, 1]
    assert mask_lengths(16, 4) == [14, 11, 6, 1]
    assert mask_lengths(1024, 2)[0] == 724


def test_default_keeps_one_slot_at_least_each_step() -> None:
    assert [num_to_remask(n, 5, Parity.DEFAULT) for n in (1, 2, 5, 6, 7)] == [0, 1, 4, 5, 5]
    assert [num_to_remask(n, 5, Parity.REFERENCE) for n in (1, 2, 5, 6, 7)] == [1, 1, 4, 5, 5]
    assert [num_to_remask(n, -1, Parity.DEFAULT) for n in (1, 2, 9)] == [0, 1, 1]


def test_noise_scale_decays_cumulatively() -> None:
    expected = [0.9375, 0.820312, 0.666504, 0.499878, 0.343666, 0.214791, 0.12082, 0.0604101]
    expected += [0.0264294, 0.00991102, 0.0030972, 0.000774299, 0.000145181, 1.81476e-5]
    expected += [1.13423e-6, 0]
    found = [noise_scale(step, 16, 1.0) for step in range(16)]
    assert found == pytest.approx(expected, rel=1e-4)
    found = [noise_scale(step, 20, 1.0) for step in range(5)]
    assert found == pytest.approx([0.95, 0.855, 0.72675, 0.5814, 0.43605])
    found = [noise_scale(step - 1, 64, 1.0) for step in (1, 8, 16, 24, 32)]
    assert found == pytest.approx([0.984375, 0.554774, 0.0967586, 0.00435845, 3.8411e-5], rel=1e-4)
    assert noise_scale(0, 16, 2.0) == 2 * noise_scale(0, 16, 1.0)
