"""The batched step does what the decoders do, whoever shares the batch.

The long form: `python -m tests.unit.sampling.test_batched 2000`.
"""

import sys

import pytest
import torch
from helpers.schedules import run_schedule


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_random_schedules(first):
    """States are equal after every step of every request."""
    schedules = [run_schedule(seed) for seed in range(first, first + 20)]
    assert sum(schedule.num_steps for schedule in schedules) > 20 * 20
    assert max(schedule.largest_batch for schedule in schedules) >= 4


if __name__ == "__main__":
    torch.set_num_threads(1)
    count = int(sys.argv[1])
    steps = sum(run_schedule(seed).num_steps for seed in range(count))
    print(f"{count} schedules, {steps} steps of requests: equal after each")
