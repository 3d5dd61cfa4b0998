"""Cross-entropy in chunks: the whole one's value and gradient, in a stated amount of memory."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.tensor_peak import TensorPeak

from vllm_dynin.processors.templates import IGNORE
from vllm_dynin.training_ext.head_loss import HeadRows, head_losses

ROWS = 138_752
"""Of the 8B's head: text, image codes, speech units and what fills it up."""
TEXT, IMAGE = ((0, 126_349),), ((126_349, 134_541),)
SPEECH = ((134_541, 138_637), (126_084, 126_085), (126_081, 126_082))
WIDTH = 8


def case(dtype=torch.float32, counts=(300, 64, 40)):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float32).to(dtype)
    parts = []
    for columns, count in zip((TEXT, IMAGE, SPEECH), counts, strict=True):
        size = sum(b - a for a, b in columns)
        labels = torch.randint(size, (count,), generator=generator)
        labels[0] = IGNORE
        hidden = torch.randn(count, WIDTH, generator=generator) / 8
        hidden = hidden.to(dtype).requires_grad_()
        parts.append(HeadRows(hidden_ND=hidden, labels_N=labels, columns=columns))
    return weight.requires_grad_(), parts


def whole(weight, part, dtype=torch.float32):
    """The definition: all logits of a direction at once."""
    rows = torch.cat([weight[a:b] for a, b in part.columns])
    logits = F.linear(part.hidden_ND, rows).to(dtype)
    return F.cross_entropy(logits, part.labels_N, ignore_index=IGNORE, reduction="none")


def weighed(losses):
    """A sum in which every position weighs differently."""
    return sum((loss * (1 + torch.arange(len(loss)) / 7)).sum() for loss in losses)


def backward(losses, weight, parts):
    return torch.autograd.grad(weighed(losses), [weight, *(part.hidden_ND for part in parts)])


@pytest.mark.parametrize("max_logits", [1, 20 * ROWS, 10**9])
def test_values_and_gradients_are_those_of_the_whole_loss(max_logits):
    """Against float64: PyTorch's own in float32 is off by 1.4e-6 at 126,349 columns, this 1.3e-7.

    The rows' gradients against float32: a product over so many columns rounds by 1e-4 in either.
    """
    counts = (5, 3, 2) if max_logits == 1 else (100, 64, 40)
    weight, parts = case(counts=counts)
    exact = [replace(part, hidden_ND=part.hidden_ND.detach().double()) for part in parts]
    expected = [whole(weight.double(), part, torch.float64) for part in exact]
    plain = [whole(weight, part) for part in parts]
    found = head_losses(weight, parts, max_logits)
    for loss, other in zip(found, expected, strict=True):
        assert loss.dtype == torch.float32 and loss[0] == 0
        assert torch.allclose(loss.double(), other, rtol=1e-6, atol=1e-6)
    of_weight, *of_rows = backward(found, weight, parts)
    (exact_weight,) = torch.autograd.grad(weighed(expected), weight)
    _, *plain_rows = backward(plain, weight, parts)
    for gradient, other in zip((of_weight, *of_rows), (exact_weight, *plain_rows), strict=True):
        scale = other.abs().max()
        assert torch.allclose(gradient / scale, other / scale, rtol=0, atol=1e-6)


def test_no_more_logits_are_alive_than_stated():
    """400 rows of text are 50 million logits; plain autograd keeps three tensors of that size."""
    limit = 20 * ROWS
    peaks = {}
    for name in ("chunks", "whole"):
        weight, parts = case(counts=(400, 64, 40))
        with TensorPeak() as peak:
            if name == "chunks":
                losses = head_losses(weight, parts, limit)
            else:
                losses = [whole(weight, part) for part in parts]
            gradients = backward(losses, weight, parts)
        peaks[name] = peak.most
        del losses, gradients
    table = 4 * ROWS * WIDTH
    assert peaks["whole"] > 2 * 4 * 400 * 126_349
    assert peaks["chunks"] < 2 * table + 1.1 * 4 * limit


def test_the_heads_gradient_is_one_table_for_all_directions():
    weight, parts = case(counts=(4, 4, 4))
    with TensorPeak() as peak:
        backward(head_losses(weight, parts, 20 * ROWS), weight, parts)
    assert peak.most < 1.5 * 4 * ROWS * WIDTH + 4 * 3 * 4 * ROWS


def test_bfloat16_and_autocast():
    weight, parts = case(torch.bfloat16)
    found, expected = head_losses(weight, parts, 50 * ROWS), [whole(weight, part) for part in parts]
    for loss, other in zip(found, expected, strict=True):
        assert torch.allclose(loss, other, atol=1e-5)
    for gradient, other in zip(
        backward(found, weight, parts), backward(expected, weight, parts), strict=True
    ):
        assert gradient.dtype == torch.bfloat16
        scale = other.abs().max()
        assert torch.allclose(gradient / scale, other / scale, atol=0.01)

    weight, parts = case()
    with torch.autocast("cpu", torch.bfloat16):
        found = head_losses(weight, parts, 50 * ROWS)
        expected = [whole(weight, part) for part in parts]
    for loss, other in zip(found, expected, strict=True):
        assert torch.allclose(loss, other, atol=1e-5)
        assert loss.dtype == torch.float32
    of_weight, *_ = backward(found, weight, parts)
    assert of_weight.dtype == torch.float32


def test_the_released_dtype():
    weight, parts = case(torch.bfloat16, counts=(6, 6, 6))
    coarse = [replace(part, is_float32=False) for part in parts]
    found, fine = head_losses(weight, coarse), head_losses(weight, parts)
    for loss, other in zip(found, fine, strict=True):
        assert torch.allclose(loss, other, atol=0.1) and not torch.equal(loss, other)


def test_mistakes_are_named():
    weight, parts = case(counts=(2, 2, 2))
    with pytest.raises(ValueError, match="max_logits=0 must be at least 1"):
        head_losses(weight, parts, 0)
    outside = replace(parts[0], columns=((0, ROWS + 1),))
    with pytest.raises(ValueError, match="lie outside the head's 138752 rows"):
        head_losses(weight, [outside])
