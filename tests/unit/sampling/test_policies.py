"""Which rows are unmasked."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_dynin.sampling.policies import select_to_unmask


def test_the_most_confident_rows_ascending():
    confidence = torch.tensor([0.9, 0.3, 0.6, 0.8])
    assert select_to_unmask(confidence, 2).tolist() == [0, 3]
    assert select_to_unmask(confidence, 0).tolist() == []
    assert select_to_unmask(confidence, 4).tolist() == [0, 1, 2, 3]
    assert select_to_unmask(confidence, 9).tolist() == [0, 1, 2, 3]


def test_ties_go_to_the_lower_row():
    assert select_to_unmask(torch.tensor([0.5, 0.7, 0.7, 0.5, 0.7]), 2).tolist() == [1, 2]
    assert select_to_unmask(torch.full((1000,), 0.25), 3).tolist() == [0, 1, 2]


def test_the_argument_is_not_modified():
    confidence = torch.tensor([0.1, 0.2])
    select_to_unmask(confidence, 1)
    assert confidence.tolist() == torch.tensor([0.1, 0.2]).tolist()


@given(
    values=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=40),
    count=st.integers(0, 41),
)
def test_no_row_left_behind_beats_a_picked_one(values, count):
    picked = select_to_unmask(torch.tensor(values, dtype=torch.float64), count).tolist()
    assert picked == sorted(set(picked))
    assert len(picked) == min(count, len(values))
    rest = set(range(len(values))) - set(picked)
    # (value, then lower row) orders the rows completely.
    assert all((values[p], -p) > (values[r], -r) for p in picked for r in rest)
