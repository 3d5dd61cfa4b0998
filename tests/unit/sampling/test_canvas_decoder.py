"""Invariants of one request's decoding, on a fake forward."""

import pytest
import torch
from helpers.algorithm_a import FakeModel, algorithm_a
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dynin.canvas import (
    Canvas,
    Decoder,
    GuidanceForm,
    Parity,
    Region,
    Stream,
    Task,
    Unconditional,
)
from vllm_dynin.sampling import tiles
from vllm_dynin.sampling.block import BlockOptions
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.decoder import CanvasDecoder, Plan
from vllm_dynin.sampling.loop import denoise
from vllm_dynin.sampling.noise import StepDraws
from vllm_dynin.sampling.schedules import block_spans, transfer_counts

CPU = torch.device("cpu")
NUM_IDS, MASK = 40, 33
MODEL = FakeModel.random(NUM_IDS)
PINNED = 5


def make_plan(
    slots,
    *,
    regions=None,
    prompt=(1, 2, 3),
    steps=6,
    block_length=4,
    temperature=0.0,
    seed=0,
    remasking="low_confidence",
    scale=0.0,
    logprobs=None,
    parity=Parity.DEFAULT,
    excluded=(MASK,),
):
    """A plan for `slots`: a string, `_` for a mask and `#` for a pinned slot."""
    ids = tuple(MASK if slot == "_" else PINNED for slot in slots)
    regions = regions or [(0, len(ids))]
    unconditional = None
    if scale:
        unconditional = Unconditional(
            stream=Stream.contiguous((MASK,) * len(prompt)),
            follows=(True,) * len(ids),
            form=GuidanceForm.DELTA,
        )
    canvas = Canvas(
        task=Task.TEXT_TO_TEXT,
        parity=parity,
        mask_id=MASK,
        conditional=Stream.contiguous(tuple(prompt)),
        slots=ids,
        regions=tuple(
            Region(
                start=start,
                stop=stop,
                decoder=Decoder.BLOCK,
                columns=((0, NUM_IDS),),
                excluded=excluded,
            )
            for start, stop in regions
        ),
        unconditional=unconditional,
    )
    options = BlockOptions(
        block_length=block_length,
        num_steps=steps,
        temperature=temperature,
        remasking=remasking,
        seed=seed,
        num_logprobs=logprobs,
    )
    return Plan(canvas=canvas, options=(options,) * len(canvas.regions), guidance_scale=scale)


def without_mask(ids):
    logits = MODEL.logits(ids)
    logits[:, MASK] = -torch.inf
    return logits


def run(plan, committed=(), model=MODEL):
    """Decode, resuming from `committed`; returns the decoder and num_committed after each step."""
    decoder, history = CanvasDecoder(plan, CPU, tuple(committed)), []
    assert decoder.num_committed >= len(committed)
    while not decoder.finished:
        slots = decoder.wanted()
        rows = model.logits(torch.tensor([*plan.canvas.conditional.ids, *decoder.ids]))
        logits = rows[len(plan.canvas.conditional.ids) :][slots]
        if plan.canvas.unconditional is not None:
            other = [*plan.canvas.unconditional.stream.ids, *decoder.unconditional_ids()]
            unconditional = model.logits(torch.tensor(other))[-len(decoder.ids) :][slots]
            logits = unconditional + (1 + plan.guidance_scale) * (logits - unconditional)
        decoder.step(slots, lambda first, stop, logits=logits: logits[first:stop].clone())
        history.append(decoder.num_committed)
    return decoder, history


shapes = st.fixed_dictionaries(
    {
        "slots": st.text("_#", min_size=1, max_size=24).filter(lambda slots: "_" in slots),
        "steps": st.integers(1, 40),
        "block_length": st.integers(1, 26),
        "temperature": st.sampled_from([0.0, 1.0]),
        "remasking": st.sampled_from(["low_confidence", "random"]),
        "scale": st.sampled_from([0.0, 2.0]),
        "seed": st.integers(0, 3),
    }
)


@settings(max_examples=150, deadline=None)
@given(shapes)
def test_invariants_of_every_step(shape):
    plan = make_plan(**shape)
    spans = list(block_spans(len(shape["slots"]), shape["block_length"], shape["steps"]))
    counts = [
        count
        for span in spans
        for count in transfer_counts(
            shape["slots"][span.start : span.stop].count("_"), span.num_steps
        )
        if count
    ]
    decoder = CanvasDecoder(plan, CPU)
    committed, num_steps = 0, 0
    while not decoder.finished:
        before = decoder.ids.clone()
        slots = decoder.wanted()
        assert slots.tolist() == sorted(set(slots.tolist())) and len(slots)
        assert bool((before[slots] == MASK).all())
        (span,) = [span for span in spans if span.start <= slots[0] < span.stop]
        assert slots[-1] < span.stop  # the active block only
        rows = MODEL.logits(torch.tensor([1, 2, 3, *before]))[3:][slots]
        decoder.step(slots, lambda first, stop, rows=rows: rows[first:stop].clone())
        changed = (decoder.ids != before).nonzero()[:, 0]
        assert len(changed) == counts[num_steps]
        assert set(changed.tolist()) <= set(slots.tolist())
        assert committed <= decoder.num_committed
        committed, num_steps = decoder.num_committed, num_steps + 1
        assert MASK not in decoder.ids[:committed].tolist()
    assert num_steps == len(counts)  # steps that would unmask nothing are not run
    assert committed == len(shape["slots"])
    for slot, token in zip(shape["slots"], decoder.ids.tolist(), strict=True):
        assert token != MASK
        assert slot == "_" or token == PINNED


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_resuming_from_any_committed_prefix_changes_nothing(shape):
    plan = make_plan(**shape)
    decoder, history = run(plan)
    whole = decoder.ids.tolist()
    for done in sorted(set(history) - {len(whole)}):
        resumed, _ = run(plan, whole[:done])
        assert resumed.ids.tolist() == whole


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_resuming_in_reference_parity(temperature):
    """Blocks that hold a proposed mask are held back, so what was given out is enough to resume."""
    num_resumed = 0
    for seed in range(20):
        model = FakeModel.random(NUM_IDS, seed=seed).favour(MASK, 3.0)
        plan = make_plan(
            "_" * 16,
            parity=Parity.REFERENCE,
            excluded=(),
            temperature=temperature,
            seed=seed,
            steps=16,
        )
        decoder, history = run(plan, model=model)
        whole = decoder.ids.tolist()
        for done in sorted(set(history) - {16}):
            assert MASK not in whole[:done]
            resumed, _ = run(plan, whole[:done], model=model)
            assert resumed.ids.tolist() == whole
            num_resumed += done > 0
    assert num_resumed > 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("slots", ["_#__", "##______", "____####____", "#_#_#_#_", "_______#"])
def test_pinned_slots_equal_the_original_started_with_them(slots, temperature):
    def draws(block, step, rows):
        noise = StepDraws(7, 0, block, step).at(rows - 3).uniform(NUM_IDS)
        return noise, torch.zeros(len(rows), dtype=torch.float64)

    plan = make_plan(slots, steps=len(slots) // 2, temperature=temperature, seed=7)
    expected = algorithm_a(
        without_mask,
        [1, 2, 3],
        num_tokens=len(slots),
        steps=len(slots) // 2,
        block_length=4,
        mask_id=MASK,
        temperature=temperature,
        draws=draws,
        slots=list(plan.canvas.slots),
    )
    assert run(plan)[0].ids.tolist() == expected


def test_regions_are_decoded_in_order_with_later_ones_visible_as_masks():
    plan = make_plan("________#____", regions=[(0, 8), (9, 13)], steps=4, block_length=4)
    behind = torch.tensor([PINNED] + [MASK] * 4)
    first = algorithm_a(
        lambda ids: without_mask(torch.cat([ids, behind]))[: len(ids)],
        [1, 2, 3],
        num_tokens=8,
        steps=4,
        block_length=4,
        mask_id=MASK,
    )
    second = algorithm_a(
        without_mask,
        [1, 2, 3, *first, PINNED],
        num_tokens=4,
        steps=4,
        block_length=4,
        mask_id=MASK,
    )
    decoder, history = run(plan)
    assert decoder.ids.tolist() == [*first, PINNED, *second]
    # The pinned slot between two regions is given out with what stands before it.
    assert history == [0, 4, 4, 9, 9, 9, 9, 13]
    for done in (4, 9):
        assert run(plan, decoder.ids.tolist()[:done])[0].ids.tolist() == decoder.ids.tolist()


def test_regions_have_draws_of_their_own():
    """Two regions with equal logits do not repeat each other."""
    model = FakeModel(*(torch.zeros_like(part) for part in vars(MODEL).values()))
    plan = make_plan(
        "_" * 32, regions=[(0, 16), (16, 32)], block_length=16, steps=1, temperature=1.0
    )
    ids = run(plan, model=model)[0].ids.tolist()
    assert ids[:16] != ids[16:]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
def test_a_block_longer_than_the_answer_is_one_block(temperature, remasking):
    options = {"steps": 5, "temperature": temperature, "remasking": remasking, "seed": 4}
    one = run(make_plan("_" * 11, block_length=11, **options))[0].ids.tolist()
    assert run(make_plan("_" * 11, block_length=64, **options))[0].ids.tolist() == one
    assert run(make_plan("_" * 11, block_length=4, **options))[0].ids.tolist() != one


def test_same_seed_same_answer_and_other_seed_another():
    def answer(seed):
        return run(make_plan("_" * 16, temperature=1.0, seed=seed))[0].ids.tolist()

    assert answer(3) == answer(3)
    assert len({tuple(answer(seed)) for seed in range(8)}) == 8


def test_global_randomness_is_neither_read_nor_advanced():
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    first = run(make_plan("_" * 8, temperature=1.0, remasking="random"))[0].ids.tolist()
    assert torch.equal(torch.rand(4), expected)
    torch.manual_seed(1)
    assert run(make_plan("_" * 8, temperature=1.0, remasking="random"))[0].ids.tolist() == first


@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_the_reference_loop_guides_as_the_formula_says(scale):
    """`denoise` runs both streams itself; `run` above combines them by hand."""
    plan = make_plan("_" * 12, scale=scale, steps=12)
    *_, decoder = denoise(plan, MODEL.forward, CPU)
    assert decoder.ids.tolist() == run(plan)[0].ids.tolist()


def test_guidance_changes_the_answer():
    assert (
        run(make_plan("_" * 12, scale=3.0))[0].ids.tolist()
        != run(make_plan("_" * 12))[0].ids.tolist()
    )


def test_the_second_stream_follows_or_stays_masked():
    plan = make_plan("_#__", scale=1.0)
    unconditional = Unconditional(
        stream=plan.canvas.unconditional.stream,
        follows=(True, False, True, False),
        form=GuidanceForm.DELTA,
    )
    canvas = Canvas(
        **{
            name: getattr(plan.canvas, name)
            for name in ("task", "parity", "mask_id", "conditional", "slots", "regions")
        },
        unconditional=unconditional,
    )
    decoder = CanvasDecoder(Plan(canvas=canvas, options=plan.options, guidance_scale=1.0), CPU)
    decoder.ids[:] = torch.tensor([10, 11, 12, 13])
    assert decoder.unconditional_ids().tolist() == [10, MASK, 12, MASK]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_those_of_the_committing_step(temperature):
    plan = make_plan("_" * 10, steps=5, block_length=5, logprobs=3, temperature=temperature)
    decoder = CanvasDecoder(plan, CPU)
    expected = {}
    while not decoder.finished:
        slots, before = decoder.wanted(), decoder.ids.clone()
        logits = MODEL.logits(torch.tensor([1, 2, 3, *before]))[3:][slots]
        decoder.step(slots, lambda first, stop, logits=logits: logits[first:stop].clone())
        logits[:, MASK] = -torch.inf
        logprobs = dict(zip(slots.tolist(), logits.float().log_softmax(-1), strict=True))
        for slot in (decoder.ids != before).nonzero()[:, 0].tolist():
            expected[slot] = logprobs[slot]
    found = decoder.logprobs(0, 10)
    for slot, row in expected.items():
        token = decoder.ids[slot]
        top = row.topk(3)
        assert found.ids[slot].tolist() == [token, *top.indices.tolist()]
        assert torch.equal(found.logprobs[slot], torch.cat([row[token][None], top.values]))
        assert found.rank[slot] == (row > row[token]).sum() + 1
    part = decoder.logprobs(3, 7)
    assert torch.equal(part.logprobs, found.logprobs[3:7])
    assert run(make_plan("_" * 4))[0].logprobs(0, 4) is None


def test_logprobs_of_slots_that_no_step_decided():
    """Each token heads its own row: a client looks it up there."""
    decoder, _ = run(make_plan("##__#_", logprobs=2))
    found = decoder.logprobs(0, 6)
    assert found.ids[:, 0].tolist() == decoder.ids.tolist()
    assert found.logprobs[[0, 1, 4]].tolist() == [[0.0] * 3] * 3
    assert found.ids[0].tolist() == [PINNED] * 3
    assert bool((found.logprobs[[2, 3, 5]] < 0).all())

    num_left = 0
    for seed in range(10):
        model = FakeModel.random(NUM_IDS, seed=seed).favour(MASK, 5.0)
        plan = make_plan(
            "_" * 8, parity=Parity.REFERENCE, excluded=(), temperature=1.0, seed=seed, logprobs=2
        )
        decoder, _ = run(plan, model=model)
        found = decoder.logprobs(0, 8)
        assert found.ids[:, 0].tolist() == decoder.ids.tolist()
        num_left += int((decoder.ids == MASK).sum())
    assert num_left > 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
def test_tiles_of_rows_change_no_answer(monkeypatch, temperature, remasking):
    options = {"temperature": temperature, "remasking": remasking, "logprobs": 2}
    plan = make_plan("_" * 21, block_length=21, steps=4, **options)
    whole, _ = run(plan)
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 3 * NUM_IDS)
    tiled, _ = run(plan)
    assert torch.equal(whole.ids, tiled.ids)
    assert torch.equal(whole.logprobs(0, 21).logprobs, tiled.logprobs(0, 21).logprobs)


def test_slots_have_draws_of_their_own():
    """Equal rows draw different tokens, the same ones every time."""
    model = FakeModel(*(torch.zeros_like(part) for part in vars(MODEL).values()))
    plan = make_plan("_" * 16, block_length=16, steps=1, temperature=1.0)
    ids = run(plan, model=model)[0].ids.tolist()
    assert ids[:8] != ids[8:]
    assert run(plan, model=model)[0].ids.tolist() == ids


def test_reading_tiles_asks_for_consecutive_rows(monkeypatch):
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 4 * NUM_IDS)
    plan = make_plan("_" * 10, block_length=10, steps=1)
    decoder, asked = CanvasDecoder(plan, CPU), []
    logits = torch.zeros(10, NUM_IDS)

    def rows(first, stop):
        asked.append((first, stop))
        return logits[first:stop]

    decoder.step(decoder.wanted(), rows)
    assert asked == [(0, 4), (4, 8), (8, 10)]


def test_columns_that_are_a_part_of_the_vocabulary():
    plan = make_plan("_" * 6, steps=6)
    region = Region(start=0, stop=6, decoder=Decoder.BLOCK, columns=((20, 25), (3, 6)))
    canvas = Canvas(
        task=plan.canvas.task,
        parity=plan.canvas.parity,
        mask_id=MASK,
        conditional=plan.canvas.conditional,
        slots=plan.canvas.slots,
        regions=(region,),
    )
    *_, decoder = denoise(Plan(canvas=canvas, options=plan.options), MODEL.forward, CPU)
    assert decoder.columns == Columns(((20, 25), (3, 6)))
    assert set(decoder.ids.tolist()) <= {20, 21, 22, 23, 24, 3, 4, 5}
