"""Logits of the allowed columns are those of the whole head, in bounded memory."""

from itertools import pairwise

import pytest
import torch
from helpers.omni_inside import peak_memory, reset_peak_memory, served_model
from helpers.omni_mix import Heads, case_of, expected, run, tokens_of

from vllm_dynin.canvas import GuidanceForm, Task
from vllm_dynin.model_executor.engine_sampler import DenoisingLogits, MaskedDiffusionSampler
from vllm_dynin.model_executor.step_logits import StepLogits, WantedRows
from vllm_dynin.processors import templates
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.guidance import guide
from vllm_dynin.sampling.tiles import row_tiles
from vllm_dynin.tokens import DYNIN_OMNI as V

TEXT = Columns(((0, V.text.stop),), (V.mask,))
EVERYTHING = Columns(((0, 138_752),))
IMAGE = Columns(((V.image.start, V.image.stop),))
SPEECH = Columns(((V.speech.start, V.speech.stop), (V.eoa, V.eoa + 1), (V.eos, V.eos + 1)))

# float32: a product over 64 numbers of size 1, summed in another order for other column counts.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-4}


def whole_head(model, hidden):
    return hidden @ model.lm_head.weight[:138_752].T


@pytest.mark.parametrize("columns", [TEXT, EVERYTHING, IMAGE, SPEECH])
@pytest.mark.parametrize("num_rows", [0, 1, 17])
def test_restricted_head(omni, columns, num_rows):
    model = served_model(omni)
    hidden = torch.randn(num_rows, 64, generator=torch.Generator().manual_seed(1))
    found = model.head(hidden, columns)
    assert found.shape == (num_rows, columns.width)
    wanted = whole_head(model, hidden)[:, columns.ids(hidden.device)]
    torch.testing.assert_close(found, wanted, **TOLERANCE)


# All of a step at once; some requests in one product, some in tiles; all in tiles of one row.
@pytest.mark.parametrize("max_elements", [1 << 26, 40 * 8192, 1])
def test_step_logits(omni, monkeypatch, max_elements):
    """Several requests, guided or not, read as the decoders read them."""
    model = served_model(omni)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(300, 64, generator=generator)
    requests = []
    for columns, count, is_guided in [
        (IMAGE, 60, True),
        (SPEECH, 12, False),
        (TEXT, 3, True),
        (IMAGE, 7, False),
        (IMAGE, 15, True),
        (EVERYTHING, 2, False),
        (SPEECH, 9, True),
    ]:
        rows = torch.randint(0, 300, (count,), generator=generator)
        second = torch.randint(0, 300, (count,), generator=generator) if is_guided else None
        form = GuidanceForm.WEIGHTED if columns is IMAGE else GuidanceForm.DELTA
        requests.append(
            WantedRows(
                rows=rows,
                columns=columns,
                unconditional_rows=second,
                guidance_scale=2.5,
                form=form,
            )
        )
    monkeypatch.setattr(StepLogits, "max_elements", max_elements)
    products = []

    def head(hidden_RD, columns):
        products.append(len(hidden_RD) * columns.width)
        return model.head(hidden_RD, columns)

    step = StepLogits(head, hidden, requests)
    assert sorted(step.order) == list(range(len(requests)))
    assert not products  # nothing is held before it is read
    tile = 1 << 21
    for number in step.order:
        request, width = requests[number], requests[number].columns.width
        ids = request.columns.ids(hidden.device)
        wanted = whole_head(model, hidden[request.rows])[:, ids]
        if request.unconditional_rows is not None:
            second = whole_head(model, hidden[request.unconditional_rows])[:, ids]
            wanted = guide(wanted, second, 2.5, request.form)
        for first, stop in row_tiles(len(request.rows), width):
            found = step.rows(number, first, stop)
            torch.testing.assert_close(found, wanted[first:stop], **TOLERANCE)
            held = sum(part.numel() for part in step._computed.values())
            assert held <= max_elements
    assert max(products) <= max(max_elements, tile)


LARGE = {"steps": 4, "resolution": 512, "guidance_scale": 3.5}


@pytest.fixture(scope="module")
def large(omni_reference):
    heads = Heads(omni_reference.config, 21)
    head = templates.text_to_image_head(heads.text(6), V)
    return case_of(head, LARGE, temperature=1.0, seed=3)


def test_memory_of_a_large_image(omni, omni_reference, large, record_property):
    """1,024 codes with guidance: 2 · 1,024 rows of 8,192 columns, not of 138,752."""
    run(omni, [large])  # one-time allocations
    before = reset_peak_memory()
    (found,) = tokens_of(run(omni, [large]))
    grown = peak_memory() - before
    assert found == expected(omni_reference, large)
    naive = 2 * 1034 * 138_752 * 4  # both streams, every row, every column, float32
    print(f"peak of a 1,024-code image: {grown / 2**20:.0f} MiB; naive {naive / 2**20:.0f} MiB")
    record_property("peak_mib", grown / 2**20)
    # The restricted logits are 64 MiB; softmax and noise of a tile add a few of 8 MiB.
    assert grown < 160 * 2**20 < naive / 6


def test_a_large_image_beside_short_texts(omni, omni_reference, large, monkeypatch):
    """The step's budget holds the image and some of the texts: who has begun goes on to its end."""
    heads = Heads(omni_reference.config, 22)
    texts = [
        case_of(
            heads.text(90 + number),
            {"steps": 16, "block_length": 16},
            max_tokens=16,
            temperature=0,
            ignore_eos=True,
        )
        for number in range(12)
    ]
    steps = []
    call = MaskedDiffusionSampler.__call__

    def recording(self, logits, input_batch, draft_logits=None):
        if isinstance(logits, DenoisingLogits):
            steps.append({id(r.slot): r.slot for r in logits.step.requests})
        return call(self, logits, input_batch, draft_logits)

    monkeypatch.setattr(MaskedDiffusionSampler, "__call__", recording)
    cases = [texts[0], large, *texts[1:]]
    assert tokens_of(run(omni, cases)) == [expected(omni_reference, case) for case in cases]
    waits = {}
    for slot in {key for step in steps for key in step}:
        turns = [number for number, step in enumerate(steps) if slot in step]
        waits[slot] = max(b - a for a, b in pairwise(turns))
    assert len(waits) == len(cases)
    assert max(len(step) for step in steps) < len(cases)  # the budget did not hold them all
    assert max(waits.values()) == 1
    task = [slot.plan.canvas.task for step in steps for slot in step.values()]
    assert task.count(Task.TEXT_TO_IMAGE) == LARGE["steps"]
