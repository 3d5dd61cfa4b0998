"""Gumbel-max proposals and their confidence."""

import math

import pytest
import torch

from vllm_dynin.kernels.rows import gumbel_scores
from vllm_dynin.sampling.confidence import propose
from vllm_dynin.sampling.noise import StepDraws

LOGITS = torch.tensor([[1.0, 0.0, 0.5]])


def draws(num_rows, seed=0):
    return StepDraws(seed, 0, 0, 0).at(torch.arange(num_rows))


@pytest.mark.parametrize(
    ("temperature", "scores", "choice"),
    [(1.0, [3.92165, 9.49122, 1.02441], 1), (0.5, [3.26499, 3.08078, 1.29960], 0)],
)
def test_gumbel_vectors(temperature, scores, choice):
    noise = torch.tensor([[0.5, 0.9, 0.2]], dtype=torch.float64)
    found = gumbel_scores(LOGITS, temperature, noise)
    assert found.dtype == torch.float64
    assert torch.allclose(found, torch.tensor([scores], dtype=torch.float64), atol=5e-6, rtol=0)
    assert found.argmax().item() == choice


def test_a_draw_of_zero_and_a_forbidden_column_never_win():
    logits = torch.tensor([[0.0, -torch.inf, 0.0]])
    noise = torch.tensor([[0.0, 0.999999, 0.5]], dtype=torch.float64)
    assert gumbel_scores(logits, 1.0, noise).argmax().item() == 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampled_frequencies_are_the_softmax(temperature, dtype):
    """200,000 rows; each of 6 ids within 5 standard errors of softmax(logits / T)."""
    num_rows = 200_000
    row = torch.tensor([1.5, 0.0, -1.0, 0.5, -torch.inf, 2.0], dtype=dtype)
    found = propose(
        row.expand(num_rows, -1),
        temperature=temperature,
        remasking="low_confidence",
        draws=draws(num_rows, 3),
    )
    counts = torch.bincount(found.column, minlength=6).double()
    expected = (row.double() / temperature).softmax(-1) * num_rows
    assert counts[4] == 0
    error = (expected * (1 - expected / num_rows)).sqrt()
    assert bool(((counts - expected).abs() <= 5 * error).all())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_confidence_is_the_clean_softmax_of_the_proposal(temperature):
    logits = torch.randn(40, 17, generator=torch.Generator().manual_seed(0)) * 3
    found = propose(logits, temperature=temperature, remasking="low_confidence", draws=draws(40, 1))
    expected = logits.double().softmax(-1).gather(-1, found.column[:, None])[:, 0]
    assert found.confidence.dtype == torch.float64
    assert torch.allclose(found.confidence, expected, atol=1e-12, rtol=0)
    if temperature == 0:
        assert torch.equal(found.column, logits.argmax(-1))
    else:
        assert not torch.equal(found.column, logits.argmax(-1))


def test_bfloat16_confidence_is_computed_in_float64():
    logits = torch.tensor([[8.0, 0.0], [8.0625, 0.0]]).bfloat16()
    found = propose(logits, temperature=0, remasking="low_confidence", draws=None)
    # A bfloat16 soft-max would round both to 1.
    expected = [1 / (1 + math.exp(-8.0)), 1 / (1 + math.exp(-8.0625))]
    assert found.confidence.tolist() == pytest.approx(expected, abs=1e-14)


def test_random_confidence_is_uniform_and_keyed():
    logits = torch.zeros(20_000, 2)
    first = propose(logits, temperature=0, remasking="random", draws=draws(20_000, 1))
    again = propose(logits, temperature=0, remasking="random", draws=draws(20_000, 1))
    other = propose(logits, temperature=0, remasking="random", draws=draws(20_000, 2))
    assert torch.equal(first.confidence, again.confidence)
    assert not torch.equal(first.confidence, other.confidence)
    assert first.confidence.min() >= 0 and first.confidence.max() < 1
    tenths = torch.bincount((first.confidence * 10).long(), minlength=10)
    assert bool(((tenths - 2000).abs() < 5 * math.sqrt(2000 * 0.9)).all())


def test_logits_are_not_modified_and_greedy_needs_no_draws():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    before = logits.clone()
    propose(logits, temperature=1.0, remasking="low_confidence", draws=draws(1))
    greedy = propose(logits, temperature=0.0, remasking="low_confidence", draws=None)
    assert torch.equal(logits, before)
    assert greedy.column.tolist() == [1]
    empty = propose(logits[:0], temperature=0.0, remasking="low_confidence", draws=None)
    assert len(empty.column) == len(empty.confidence) == 0


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, 0.0], [-1e4, -1e4]])
    found = propose(logits, temperature=0.0, remasking="low_confidence", draws=None)
    assert found.confidence.tolist() == pytest.approx([1.0, 0.5], abs=1e-11)
