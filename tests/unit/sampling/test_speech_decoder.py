"""Speech decoding against a plain transcription of the original, its vectors, its invariants."""

import pytest
import torch
from helpers.fake_model import FIRST, MASK, FakeModel, run

from vllm_dynin.canvas import Parity
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.noise import StepDraws
from vllm_dynin.sampling.speech import SpeechDecoder, SpeechOptions, speech_spans

CPU = torch.device("cpu")
EOA, EOS, UNITS = 5, 3, 16
COLUMNS = Columns(((FIRST, FIRST + UNITS), (EOA, EOA + 1), (EOS, EOS + 1)))


def make_model(num_slots, dtype=torch.float32):
    return FakeModel(num_slots, UNITS, extra_ids=(EOA, EOS), dtype=dtype)


def make(num_slots, options, known=(), done=0):
    ids = torch.full((num_slots,), MASK)
    for slot, unit in known:
        ids[slot] = FIRST + unit
    decoder = SpeechDecoder(
        ids, 0, num_slots, mask_id=MASK, columns=COLUMNS, options=options, done=done
    )
    return ids, decoder


def transcription(num_slots, model, options):
    """Algorithm C over the region, as the original has it; the draws are given."""
    ids = torch.full((num_slots,), MASK)
    block_length = max(1, min(options.block_length, num_slots))
    num_blocks = -(-num_slots // block_length)
    steps = max(1, options.num_steps // num_blocks)
    for b in range(num_blocks):
        window = slice(b * block_length, min((b + 1) * block_length, num_slots))
        size = window.stop - window.start
        counts = [size // steps + (i < size % steps) for i in range(steps)]
        for i in range(steps):
            left = ids[window] == MASK
            if not left.any():
                break
            classes = model(ids)[window][left]
            if options.temperature > 0:
                classes = classes / max(options.temperature, 1e-5)
            p = torch.softmax(classes, -1)
            slots = left.nonzero()[:, 0] + window.start
            e = StepDraws(options.seed, 0, b, i).at(slots).exponential(p.shape[1], p.dtype)
            sample = (p / e).argmax(-1)
            conf = p.gather(-1, sample[:, None])[:, 0]
            best = torch.sort(conf, descending=True, stable=True).indices[: counts[i]]
            chosen = sample[best]
            token = torch.where(
                chosen == UNITS, EOA, torch.where(chosen > UNITS, EOS, chosen + FIRST)
            )
            ids[slots[best]] = token
    return ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
@pytest.mark.parametrize(
    ("num_slots", "num_steps", "block_length"),
    [(5, 5, 2), (23, 12, 8), (16, 16, 16), (7, 100, 3), (12, 1, 4), (1, 1, 1), (9, 9, 50)],
)
def test_reference_equals_the_transcription(
    num_slots, num_steps, block_length, temperature, dtype
) -> None:
    options = SpeechOptions(
        block_length=block_length,
        num_steps=num_steps,
        temperature=temperature,
        parity=Parity.REFERENCE,
        seed=11,
    )
    model = make_model(num_slots, dtype)
    ids, decoder = make(num_slots, options)
    list(run(decoder, ids, model))
    assert ids.tolist() == transcription(num_slots, model, options).tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_default_equals_the_transcription_in_float32(temperature) -> None:
    options = SpeechOptions(block_length=8, num_steps=12, temperature=temperature, seed=2)
    model = make_model(23)
    ids, decoder = make(23, options)
    list(run(decoder, ids, model))
    assert ids.tolist() == transcription(23, model, options).tolist()


def spans(num_slots, num_steps, block_length):
    return [
        (s.start, s.stop, s.num_steps) for s in speech_spans(num_slots, block_length, num_steps)
    ]


def test_block_plans_of_the_original() -> None:
    assert spans(383, 383, 128) == [(0, 128, 127), (128, 256, 127), (256, 383, 127)]
    assert spans(512, 512, 128) == [(start, start + 128, 128) for start in range(0, 512, 128)]
    assert spans(5, 5, 2) == [(0, 2, 1), (2, 4, 1), (4, 5, 1)]
    assert spans(3, 2, 100) == [(0, 3, 2)]


def test_number_of_forwards() -> None:
    for num_slots, num_steps, block_length, forwards in [
        (5, 5, 2, 3),
        (7, 100, 3, 7),  # a step that would decide nothing is left out
        (12, 1, 4, 3),
    ]:
        options = SpeechOptions(block_length=block_length, num_steps=num_steps)
        model = make_model(num_slots)
        ids, decoder = make(num_slots, options)
        list(run(decoder, ids, model))
        assert model.num_calls == forwards


def test_zero_temperature_is_greedy_in_default_parity() -> None:
    model, results = make_model(10), []
    for seed in (1, 2):
        options = SpeechOptions(block_length=4, num_steps=10, temperature=0.0, seed=seed)
        ids, decoder = make(10, options)
        logits = model(ids)[:4]
        first = next(run(decoder, ids, model))
        kept = int((first != MASK).nonzero()[0, 0])
        assert kept == int(logits.softmax(-1).max(-1).values.argmax())
        assert first[kept] == COLUMNS.ids(CPU)[logits[kept].argmax()]
        list(run(decoder, ids, model))
        results.append(ids.tolist())
    assert results[0] == results[1]


@pytest.mark.parametrize("parity", list(Parity))
def test_invariants(parity) -> None:
    known = [(1, 3), (9, 0), (10, 15)]
    options = SpeechOptions(block_length=4, num_steps=9, parity=parity, seed=8)
    model = make_model(14)
    ids, decoder = make(14, options, known)
    before, committed = ids.clone(), [0]
    for after in run(decoder, ids, model):
        changed = (after != before).nonzero()[:, 0]
        assert len(changed) > 0
        assert (before[changed] == MASK).all()
        assert len({int(slot) // 4 for slot in changed}) == 1
        committed.append(decoder.num_committed)
        assert (after[: decoder.num_committed] != MASK).all()
        before = after
    assert committed == sorted(committed)
    assert committed[-1] == 14
    allowed = set(COLUMNS.ids(CPU).tolist())
    assert set(ids.tolist()) <= allowed
    assert [int(ids[slot]) - FIRST for slot, _ in known] == [unit for _, unit in known]


def test_a_resumed_request_ends_as_an_undisturbed_one() -> None:
    options = SpeechOptions(block_length=4, num_steps=14, seed=6)
    model = make_model(14)
    whole, decoder = make(14, options)
    list(run(decoder, whole, model))
    known = [(slot, int(whole[slot]) - FIRST) for slot in range(8)]
    ids, decoder = make(14, options, known, done=8)
    assert decoder.num_committed == 8
    list(run(decoder, ids, model))
    assert ids.tolist() == whole.tolist()


def test_a_region_inside_a_canvas() -> None:
    options = SpeechOptions(block_length=3, num_steps=6)
    ids = torch.tensor([FIRST, 8, *[MASK] * 6, 9])
    decoder = SpeechDecoder(ids, 2, 8, mask_id=MASK, columns=COLUMNS, options=options)
    assert decoder.num_committed == 2
    list(run(decoder, ids, make_model(9)))
    assert (ids[:2].tolist(), int(ids[8])) == ([FIRST, 8], 9)
    assert MASK not in ids.tolist()
    assert decoder.num_committed == 8


def test_logprobs_belong_to_the_final_units() -> None:
    options = SpeechOptions(block_length=4, num_steps=8, seed=1, num_logprobs=1)
    ids, decoder = make(8, options)
    list(run(decoder, ids, make_model(8)))
    assert decoder.logprobs.ids[:, 0].tolist() == ids.tolist()
    assert (decoder.logprobs.logprobs[:, 0] <= decoder.logprobs.logprobs[:, 1]).all()
