"""Image decoding against a plain transcription of the original, its vectors, and its invariants."""

import pytest
import torch
from helpers.fake_model import FIRST, MASK, FakeModel, run

from vllm_dynin.canvas import GuidanceForm, Parity
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.guidance import guide
from vllm_dynin.sampling.maskgit import MaskGitDecoder, MaskGitOptions, select_to_remask
from vllm_dynin.sampling.noise import StepDraws
from vllm_dynin.sampling.proposals import propose_sampled
from vllm_dynin.sampling.schedules import mask_ratio

CPU = torch.device("cpu")


def make(num_slots, num_codes, options, known=(), tail=()):
    ids = torch.full((num_slots,), MASK)
    for slot, code in known:
        ids[slot] = FIRST + code
    ids = torch.cat([ids, torch.tensor(tail, dtype=torch.int64)])
    columns = Columns(((FIRST, FIRST + num_codes),))
    decoder = MaskGitDecoder(ids, 0, num_slots, mask_id=MASK, columns=columns, options=options)
    return ids, decoder


def transcription(ids, num_slots, model, options):
    """Algorithm B step by step over all slots, as the original has it; the draws are given."""
    ids = ids.clone()
    cur = torch.where(ids[:num_slots] == MASK, MASK, ids[:num_slots] - FIRST)
    is_unknown = ids[:num_slots] == MASK
    tau = options.temperature
    for k in range(options.num_steps):
        logits = model(ids)[:num_slots]
        p = torch.softmax(logits, -1)
        draws = StepDraws(options.seed, 0, 0, k).at(is_unknown.nonzero()[:, 0])
        e = draws.exponential(p.shape[1], p.dtype)
        sample = cur.clone()
        sample[is_unknown] = (p[is_unknown] / e).argmax(-1)
        r = (k + 1) / options.num_steps
        ratio = mask_ratio(options.schedule, torch.tensor(r, dtype=torch.float32))
        conf = p.gather(-1, sample.clamp(0, p.shape[1] - 1)[:, None])[:, 0]
        conf = torch.where(is_unknown, conf, torch.finfo(conf.dtype).max)
        wanted = torch.floor(num_slots * ratio)
        mask_len = torch.max(torch.tensor(1), torch.min(is_unknown.sum() - 1, wanted)).long()
        tau = tau * (1 - r)
        c = torch.log(torch.clamp(conf, min=1e-20))
        if tau > 0:
            u = draws.ranking(c.dtype)
            noise = -torch.log(torch.clamp(-torch.log(torch.clamp(u, min=1e-20)), min=1e-20))
            c[is_unknown] = c[is_unknown] + tau * noise
        # With one slot the original's cut-off would lie outside; nothing is known yet.
        in_range = mask_len < num_slots
        masked = c < torch.sort(c).values[mask_len] if in_range else is_unknown.clone()
        ids[:num_slots] = torch.where(masked, MASK, sample + FIRST)
        cur = torch.where(masked, MASK, sample)
        is_unknown = masked
    return sample + FIRST


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "pow2", "sigmoid"])
@pytest.mark.parametrize(
    ("num_slots", "num_steps", "known"),
    [
        (16, 4, ()),
        (37, 18, ()),
        (8, 20, ()),
        (1, 3, ()),
        (64, 1, ()),
        (37, 6, tuple((slot, slot % 5) for slot in range(3, 37, 2))),
        (9, 5, tuple((slot, 1) for slot in range(8))),
    ],
)
def test_reference_equals_the_transcription(num_slots, num_steps, known, schedule, dtype) -> None:
    options = MaskGitOptions(
        num_steps=num_steps, schedule=schedule, parity=Parity.REFERENCE, seed=5, temperature=1.3
    )
    model = FakeModel(num_slots + 1, 24, dtype=dtype)
    ids, decoder = make(num_slots, 24, options, known, tail=[8])
    expected = transcription(ids, num_slots, model, options)
    list(run(decoder, ids, model))
    assert ids[:-1].tolist() == expected.tolist()
    assert ids[-1] == 8


@pytest.mark.parametrize(("num_slots", "num_steps"), [(16, 4), (37, 18), (64, 1), (1, 3)])
def test_default_equals_the_transcription_in_float32(num_slots, num_steps) -> None:
    """Without ties and with more slots than steps the two parities take the same decisions."""
    options = MaskGitOptions(num_steps=num_steps, seed=3)
    model = FakeModel(num_slots, 24)
    ids, decoder = make(num_slots, 24, options)
    expected = transcription(ids, num_slots, model, options)
    steps = list(run(decoder, ids, model))
    if num_slots > 1:
        assert ids.tolist() == expected.tolist()
        assert len(steps) == num_steps
    else:  # its only slot is kept at once: the later steps would draw from the same distribution
        assert len(steps) == 1


def test_bfloat16_ties_mask_fewer_in_reference_only() -> None:
    confidence = torch.tensor([0.5, 0.5, 0.5, 0.9])
    options = {"scale": 0.0, "draws": None}
    tied = select_to_remask(confidence, 2, parity=Parity.REFERENCE, **options)
    assert tied.tolist() == [False] * 4
    exact = select_to_remask(confidence, 2, parity=Parity.DEFAULT, **options)
    assert exact.tolist() == [True, True, False, False]


@pytest.mark.parametrize("parity", list(Parity))
def test_least_confident_are_remasked(parity) -> None:
    confidence = torch.tensor([0.9, 0.2, 0.5, 0.7])
    marked = select_to_remask(confidence, 2, scale=0.0, parity=parity, draws=None)
    assert marked.tolist() == [False, True, True, False]


def test_remasking_noise_has_gumbel_frequencies() -> None:
    """The kept one of two is a Gumbel-max draw: it follows conf ** (1 / scale)."""
    confidence = torch.tensor([0.8, 0.2])
    num = 4000
    for scale, expected in [(1.0, 0.8), (0.5, 0.64 / 0.68)]:
        kept_first = 0
        for step in range(num):
            draws = StepDraws(0, 0, 0, step).at(torch.arange(2))
            marked = select_to_remask(
                confidence, 1, scale=scale, parity=Parity.DEFAULT, draws=draws
            )
            kept_first += int(not marked[0])
        deviation = (expected * (1 - expected) / num) ** 0.5
        assert abs(kept_first / num - expected) < 4 * deviation


@pytest.mark.parametrize("parity", list(Parity))
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_proposals_have_softmax_frequencies(parity, temperature) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])
    num = 40_000
    draws = StepDraws(1, 0, 0, 0).at(torch.arange(num))
    found = propose_sampled(
        logits.expand(num, 5).clone(), temperature=temperature, parity=parity, draws=draws
    )
    expected = torch.softmax(logits / temperature, -1)
    counts = torch.bincount(found.column, minlength=5)
    assert counts[4] == 0
    chi2 = ((counts - num * expected)[:4] ** 2 / (num * expected[:4])).sum()
    assert chi2 < 21.1  # 3 degrees of freedom, p = 1e-4
    torch.testing.assert_close(found.confidence, expected[found.column])


def test_forbidden_columns_are_never_drawn_in_bfloat16() -> None:
    logits = torch.full((2000, 64), -torch.inf, dtype=torch.bfloat16)
    logits[:, 3] = 0
    draws = StepDraws(0, 0, 0, 0).at(torch.arange(2000))
    found = propose_sampled(logits, temperature=1.0, parity=Parity.REFERENCE, draws=draws)
    assert (found.column == 3).all()
    assert found.confidence.dtype == torch.bfloat16


def test_zero_temperature_is_greedy_in_default_parity() -> None:
    model = FakeModel(20, 24)
    results = []
    for seed in (1, 2):
        ids, decoder = make(20, 24, MaskGitOptions(num_steps=5, temperature=0.0, seed=seed))
        first = model(ids).argmax(-1) + FIRST
        steps = list(run(decoder, ids, model))
        kept = steps[0] != MASK
        assert 0 < kept.sum() < 20
        assert (steps[0][kept] == first[kept]).all()
        confidence = model(torch.full((20,), MASK)).softmax(-1).max(-1).values
        assert confidence[kept].min() >= confidence[~kept].max()
        results.append(ids.tolist())
    assert results[0] == results[1]


def test_zero_temperature_still_samples_in_reference() -> None:
    options = {"num_steps": 5, "temperature": 0.0, "parity": Parity.REFERENCE}
    model, results = FakeModel(20, 24), []
    for seed in (1, 2):
        ids, decoder = make(20, 24, MaskGitOptions(seed=seed, **options))
        list(run(decoder, ids, model))
        results.append(ids.tolist())
    assert results[0] != results[1]


@pytest.mark.parametrize("parity", list(Parity))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_invariants(parity, temperature) -> None:
    known = tuple((slot, slot % 7) for slot in range(0, 30, 3))
    options = MaskGitOptions(num_steps=6, temperature=temperature, parity=parity, seed=9)
    model = FakeModel(31, 24)
    ids, decoder = make(30, 24, options, known, tail=[8])
    before = ids.clone()
    for after in run(decoder, ids, model):
        was_known = before != MASK
        assert (after[was_known] == before[was_known]).all()  # what is kept stays
        assert (after == MASK).sum() < (before == MASK).sum()
        before = after
    assert decoder.num_committed == 30
    assert ((ids[:-1] >= FIRST) & (ids[:-1] < FIRST + 24)).all()
    assert ids[-1] == 8


def test_schedule_is_spread_over_the_targets_in_default_and_all_slots_in_reference() -> None:
    known = tuple((slot, 0) for slot in range(48))
    masked = {}
    for parity in Parity:
        ids, decoder = make(64, 24, MaskGitOptions(num_steps=4, parity=parity), known)
        masked[parity] = [int((ids == MASK).sum()) for ids in run(decoder, ids, FakeModel(64, 24))]
    assert masked == {Parity.DEFAULT: [14, 11, 6, 0], Parity.REFERENCE: [15, 14, 13, 0]}


def test_more_steps_than_slots_end_early_in_default() -> None:
    ids, decoder = make(5, 24, MaskGitOptions(num_steps=50))
    assert len(list(run(decoder, ids, FakeModel(5, 24)))) == 5


def test_same_seed_same_image_and_another_seed_another() -> None:
    model, results = FakeModel(24, 24), []
    for seed in (4, 4, 5):
        ids, decoder = make(24, 24, MaskGitOptions(num_steps=4, seed=seed))
        list(run(decoder, ids, model))
        results.append(ids.tolist())
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tiles_change_nothing(monkeypatch, temperature) -> None:
    monkeypatch.setattr("vllm_dynin.sampling.tiles.TILE_ELEMENTS", 24 * 7)
    options = MaskGitOptions(num_steps=4, temperature=temperature)
    model = FakeModel(24, 24)
    ids, decoder = make(24, 24, options)
    tiled = [step.tolist() for step in run(decoder, ids, model)]
    monkeypatch.undo()
    ids, decoder = make(24, 24, options)
    assert tiled == [step.tolist() for step in run(decoder, ids, model)]


def test_logprobs_are_those_of_the_step_that_kept_the_code() -> None:
    model = FakeModel(12, 24)
    ids, decoder = make(12, 24, MaskGitOptions(num_steps=3, seed=1, num_logprobs=2))
    before, expected = ids.clone(), {}
    for after in run(decoder, ids, model):
        logprobs = model(before).float().log_softmax(-1)
        for slot in (before == MASK).logical_and(after != MASK).nonzero()[:, 0].tolist():
            expected[slot] = float(logprobs[slot, after[slot] - FIRST])
        before = after
    found = decoder.logprobs
    assert found.ids[:, 0].tolist() == ids.tolist()
    assert found.logprobs[:, 0].tolist() == pytest.approx([expected[s] for s in range(12)])


def test_guidance_forms_round_differently_in_bfloat16() -> None:
    c, u = (torch.tensor([x], dtype=torch.bfloat16) for x in (12.375, 11.8125))
    assert guide(c, u, 3.5, GuidanceForm.WEIGHTED).item() == 14.5
    assert guide(c, u, 3.5, GuidanceForm.DELTA).item() == 14.375
    exact = guide(c.double(), u.double(), 3.5, GuidanceForm.WEIGHTED).item()
    assert exact == guide(c.double(), u.double(), 3.5, GuidanceForm.DELTA).item() == 14.34375
