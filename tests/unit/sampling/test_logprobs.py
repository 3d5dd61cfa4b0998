"""Log-probabilities of proposals."""

import torch

from vllm_dynin.sampling.logprobs import RowLogprobs, row_logprobs

CPU = torch.device("cpu")


def test_values_alternatives_and_rank():
    probabilities = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]])
    logits = probabilities.log() + 4.0
    ids = torch.tensor([30, 10, 20])
    found = row_logprobs(logits, torch.tensor([1, 1]), ids, 2)
    assert found.ids.tolist() == [[10, 30, 20], [10, 10, 20]]
    expected = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.6, 0.3]]).log()
    assert torch.allclose(found.logprobs, expected, atol=1e-6, rtol=0)
    assert found.logprobs.dtype == torch.float32
    assert found.rank.tolist() == [3, 1]


def test_more_alternatives_than_columns_are_all_columns():
    found = row_logprobs(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([4, 5]), 9)
    assert found.ids.shape == (1, 3)
    assert found.rank.tolist() == [1]  # equals share the best rank


def test_store_copies_rows():
    store = RowLogprobs.empty(3, 1, CPU)
    source = row_logprobs(
        torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([1, 1]), torch.tensor([7, 8]), 1
    )
    store.store(torch.tensor([2]), source, torch.tensor([1]))
    assert store.ids.tolist() == [[0, 0], [0, 0], [8, 7]]
    assert store.rank.tolist() == [0, 0, 2]
    assert torch.equal(store.logprobs[2], source.logprobs[1])
