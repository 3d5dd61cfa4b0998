"""The functions of the sampler against plain statements of them, at the sizes of the vocabulary.

Nothing here asks two devices for the same rounding: what is expected is computed in NumPy, in
float64 or in integers, from the inputs alone.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.devices import DEVICES, DTYPES, on_device

from vllm_dynin.canvas import GuidanceForm, Parity
from vllm_dynin.sampling.confidence import propose
from vllm_dynin.sampling.guidance import guide
from vllm_dynin.sampling.logprobs import row_logprobs
from vllm_dynin.sampling.maskgit import select_to_remask
from vllm_dynin.sampling.noise import StepDraws
from vllm_dynin.sampling.policies import select_to_unmask
from vllm_dynin.sampling.proposals import propose_sampled

TEXT, IMAGE = 126_349, 8_192
"""Columns of text and of image codes in the published vocabulary; the first is odd."""


def logits_of(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Random logits; in bfloat16 many of them tie."""
    generator = torch.Generator().manual_seed(rows)
    return (torch.randn(rows, columns, generator=generator) * 4).to(dtype).to(device)


def words(seed: int, step: int, place: int, slot: int, column: int) -> int:
    """One word of Philox4x32-10 in Python's integers, as the paper states it."""
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    counter = [column // 4, slot, step, place]
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (b >> 32) ^ counter[1] ^ key[0],
            b & 0xFFFFFFFF,
            (a >> 32) ^ counter[3] ^ key[1],
            a & 0xFFFFFFFF,
        ]
        key = [key[0] + 0x9E3779B9 & 0xFFFFFFFF, key[1] + 0xBB67AE85 & 0xFFFFFFFF]
    return counter[column % 4]


@pytest.mark.parametrize("device", DEVICES)
def test_draws(device) -> None:
    """The same numbers on every device, in whatever order and company slots come."""
    where = on_device(device)
    step = StepDraws(seed=0xDEADBEEF12345678, region=3, block=70_000, step=9)
    slots = torch.tensor([5, 0, 4095, 17])
    found = step.at(slots.to(where)).uniform(TEXT).cpu()
    assert found.dtype == torch.float64 and found.shape == (4, TEXT)
    assert float(found.min()) > 0 and float(found.max()) < 1
    place = 3 << 20 | 70_000
    for row, slot in enumerate(slots.tolist()):
        for column in (0, 1, 3, 4, 1023, 1024, 65_537, TEXT - 1):
            word = words(step.seed, step.step, place, slot, column)
            assert float(found[row, column]) == (word + 0.5) / 2**32, (slot, column)
    alone = step.at(slots[2:3].to(where)).uniform(TEXT).cpu()
    assert torch.equal(alone[0], found[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
def test_the_most_likely(device, dtype) -> None:
    """The first of the largest, ties included, and its probability."""
    logits = logits_of(17, TEXT, dtype, on_device(device))
    logits[3, 100:200] = 60.0  # a tie of a hundred
    found = propose(logits, None, temperature=0.0, remasking="low_confidence")
    wide = logits.double().cpu().numpy()
    assert found.column.cpu().tolist() == wide.argmax(-1).tolist()
    shifted = wide - wide.max(-1, keepdims=True)
    likely = 1 / np.exp(shifted).sum(-1)
    assert np.allclose(found.confidence.cpu().numpy(), likely, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
def test_a_sampled_one(device, dtype) -> None:
    """Gumbel's arg-max in float64 over the draws of `words`, which the test above has checked."""
    where = on_device(device)
    logits = logits_of(13, TEXT, dtype, where)
    draws = StepDraws(7, 0, 1, 2).at(torch.arange(13, device=where))
    found = propose(logits, draws, temperature=0.7, remasking="low_confidence")
    uniform = StepDraws(7, 0, 1, 2).at(torch.arange(13)).uniform(TEXT).numpy()
    scores = logits.double().cpu().numpy() - 0.7 * np.log(-np.log(uniform))
    assert found.column.cpu().tolist() == scores.argmax(-1).tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("columns", [IMAGE, 4_098])
def test_an_image_code_or_a_unit(device, columns) -> None:
    """p / e in float32; where the two best are within rounding of each other, either is right."""
    where = on_device(device)
    rows = 300
    logits = logits_of(rows, columns, torch.bfloat16, where)
    draws = StepDraws(11, 1, 0, 5).at(torch.arange(rows, device=where))
    found = propose_sampled(logits, draws, temperature=1.0, parity=Parity.DEFAULT)
    uniform = StepDraws(11, 1, 0, 5).at(torch.arange(rows)).uniform(columns).numpy()
    wide = logits.double().cpu().numpy()
    scores = wide - np.log(-np.log1p(-uniform))
    best = scores.max(-1)
    chosen = np.take_along_axis(scores, found.column.cpu().numpy()[:, None], 1)[:, 0]
    # A draw near 1 has few digits left in float32: 2**-24 of 1 - u.
    assert (best - chosen < 1e-3).all()
    assert (scores.argmax(-1) == found.column.cpu().numpy()).mean() > 0.99
    shifted = np.exp(wide - wide.max(-1, keepdims=True))
    p = np.take_along_axis(shifted, found.column.cpu().numpy()[:, None], 1)[:, 0] / shifted.sum(-1)
    assert np.allclose(found.confidence.cpu().numpy(), p, rtol=2e-5, atol=0)


@pytest.mark.parametrize("form", list(GuidanceForm))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
def test_guidance_rounds_after_every_operation(device, dtype, form) -> None:
    """Both forms as the originals compute them: each operation rounded to the logits' dtype."""
    where = on_device(device)
    a, b = (logits_of(rows, IMAGE, dtype, where)[:24] for rows in (24, 25))
    found = guide(a, b, 3.0, form).cpu()
    a, b = a.cpu().double(), b.cpu().double()

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.to(dtype).double()

    if form is GuidanceForm.DELTA:
        expected = rounded(b + rounded(4.0 * rounded(a - b)))
    else:
        expected = rounded(rounded(4.0 * a) - rounded(3.0 * b))
    assert torch.equal(found.double(), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_unmasked(device) -> None:
    """The most confident, and among equals the one that comes first."""
    where = on_device(device)
    confidence = (torch.rand(1_024, generator=torch.Generator().manual_seed(0)) * 20).round() / 20
    order = sorted(range(1_024), key=lambda row: (-float(confidence[row]), row))
    for count in (0, 1, 37, 1_023, 1_024, 2_000):
        found = select_to_unmask(confidence.double().to(where), count)
        assert found.cpu().tolist() == sorted(order[:count])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("parity", list(Parity))
def test_what_is_masked_again(device, parity) -> None:
    where = on_device(device)
    confidence = (torch.rand(441, generator=torch.Generator().manual_seed(1)) * 30).round() / 30
    score = confidence.clamp(min=1e-20).log().tolist()
    order = sorted(range(441), key=lambda row: (score[row], row))
    for count in (1, 17, 440):
        found = select_to_remask(confidence.to(where), count, scale=0, parity=parity, draws=None)
        marked = set(found.nonzero()[:, 0].tolist())
        if parity is Parity.REFERENCE:
            assert marked == {row for row in range(441) if score[row] < score[order[count]]}
        else:
            assert marked == set(order[:count])


@pytest.mark.parametrize("device", DEVICES)
def test_log_probabilities(device) -> None:
    where = on_device(device)
    logits = logits_of(9, TEXT, torch.float32, where)
    column = torch.arange(9, device=where) * 1_000
    ids = torch.arange(TEXT, device=where) + 50
    found = row_logprobs(logits, column, ids, 5)
    wide = logits.cpu().double().numpy()
    log_p = wide - wide.max(-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    best = np.argsort(-wide, axis=-1, kind="stable")[:, :5]
    expected_ids = np.concatenate([column.cpu().numpy()[:, None], best], 1)
    assert found.ids.cpu().tolist() == (expected_ids + 50).tolist()
    expected = np.take_along_axis(log_p, expected_ids, 1)
    assert np.allclose(found.logprobs.cpu().numpy(), expected, atol=2e-5, rtol=0)
    ranks = (log_p > expected[:, :1]).sum(-1) + 1
    assert found.rank.cpu().tolist() == ranks.tolist()
