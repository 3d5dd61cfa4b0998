"""Losses of mixed steps: hand-computed values, and independence of how rows are shared out."""

import math
import random

import pytest
import torch

from vllm_dynin.canvas import Task
from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.processors.templates import IGNORE
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.training_ext.collate import Batch, collate
from vllm_dynin.training_ext.directions import TRAINED, DirectionObjective, objectives
from vllm_dynin.training_ext.initialise import initialise
from vllm_dynin.training_ext.losses import (
    Noised,
    add_totals,
    denominators,
    losses_of,
    mixed_loss,
    noise_batch,
    noise_batches,
    weighted_sum,
)
from vllm_dynin.training_ext.objective import (
    Noise,
    draw_noise,
    mask_by_schedule,
    mask_targets,
    position_weights,
)
from vllm_dynin.training_ext.records import Record, SampleContext, make_sample, sample_policies

FRAMES, CODES, UNITS = ((1, 2), (3, 4)), (1, 2, 3, 4), (5, 6, 7)
RECORDS = {
    Task.TEXT_TO_TEXT: {"text": "red", "answer": "blue table"},
    Task.IMAGE_TO_TEXT: {"images": (CODES,), "answer": "a cube"},
    Task.VIDEO_TO_TEXT: {"images": FRAMES, "answer": "two spheres"},
    Task.SPEECH_TO_TEXT: {"units": UNITS, "answer": "a table"},
    Task.TEXT_TO_IMAGE: {"text": "cube", "target_image": CODES},
    Task.IMAGE_TO_IMAGE: {"text": "cube", "images": (CODES,), "target_image": CODES},
    Task.TEXT_TO_SPEECH: {"text": "table", "units": UNITS},
    Task.SPEECH_TO_SPEECH: {"units": UNITS, "reply_units": UNITS},
    Task.VIDEO_TO_SPEECH: {"images": FRAMES, "units": UNITS},
}


@pytest.fixture(scope="module")
def context(tokenizer) -> SampleContext:
    config = DyninOmniConfig(
        d_model=16,
        n_heads=2,
        n_layers=1,
        mlp_hidden_size=32,
        text_vocab_size=len(tokenizer),
        codebook_size=8,
        speech_codebook_size=12,
        image_text_block=12,
        speech_text_block=60,
        video_text_block=40,
    )
    return SampleContext(config=config, tokenizer=tokenizer, policies=sample_policies())


@pytest.fixture
def model(context) -> LLaDA:
    made = LLaDA(context.config)
    initialise(made, 0)
    return made


def samples_of(task, context, count):
    """Rows of different lengths."""
    made = []
    for index in range(count):
        fields = dict(RECORDS[task])
        for name in ("answer", "units", "reply_units"):
            if name in fields and index % 2:
                fields[name] = fields[name] + fields[name]
        made.append(make_sample(Record(task=task, **fields), context, random.Random(index)))
    return made


def batches_of(context, count=4, tasks=TRAINED):
    return {task: collate(samples_of(task, context, count)) for task in tasks}


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# --- by hand --------------------------------------------------------------------------------------


class KnownLogits(torch.nn.Module):
    """In the place of the network where its logits are to be known beforehand.

    The hidden state of a position has a one at its own place, so that the head holds its logits.
    """

    def __init__(self, config, logits_BTV):
        super().__init__()
        self.config = config
        self.head_weight = torch.nn.Parameter(logits_BTV.flatten(0, 1).T.contiguous())

    def hidden(self, ids_BT, positions_BT=None, attend=None):
        return torch.eye(ids_BT.numel()).view(*ids_BT.shape, -1)


def noised_by_hand(is_masked, labels, probability, objective, config):
    """What `noise_batch` makes of targets whose masked positions are known."""
    is_masked = torch.tensor(is_masked)
    level = (torch.tensor(probability) - 1e-3) / (1 - 1e-3)
    batch = Batch(
        ids_BT=torch.zeros_like(is_masked, dtype=torch.int64),
        is_target_BT=torch.ones_like(is_masked),
        labels_BT=torch.tensor(labels),
    )
    noise = Noise(level_B=level, uniform_BT=torch.where(is_masked, 0.0, 1.0))
    return noise_batch(batch, objective, noise, config)


@pytest.fixture(scope="module")
def ten_rows(tokenizer):
    """Two image codes and four units: the classes of the vectors, at other ids."""
    return DyninOmniConfig(text_vocab_size=len(tokenizer), codebook_size=2, speech_codebook_size=4)


def loss_by_hand(task, logits_BTV, config, is_masked, labels, probability, **options):
    objective = objectives(**options)[task]
    part = noised_by_hand(is_masked, labels, probability, objective, config)
    return losses_of(KnownLogits(config, logits_BTV), {task: part}, {task: objective}), part


def test_speech_by_hand(ten_rows):
    """Unit 1 with a logit of 1, end of audio with 2; classes are units, end of audio, EOS."""
    v = ten_rows.vocabulary
    unit = v.speech.start + 1
    logits = torch.zeros(1, 2, ten_rows.vocab_size)
    logits[0, 0, unit], logits[0, 1, v.eoa] = 1.0, 2.0
    task = Task.TEXT_TO_SPEECH
    losses, part = loss_by_hand(task, logits, ten_rows, [[True] * 2], [[unit, v.eoa]], [0.25])
    assert part.labels_N.tolist() == [1, 4]
    assert losses.nll[task].tolist() == pytest.approx([1.043592, 0.516814], abs=1e-6)
    assert losses.total.item() == pytest.approx(3.120811, abs=1e-6)
    losses, part = loss_by_hand(task, logits, ten_rows, [[True] * 2], [[unit, 5]], [0.25])
    assert losses.num_supervised == {task: 1}  # a text id is none of the classes
    assert losses.total.item() == pytest.approx(1.043592 / 0.25 / 2, abs=1e-6)


def test_images_by_hand(ten_rows):
    """Two codes, ln 3 at the first: the mean over all labelled masked positions, without 1 / p."""
    first = ten_rows.vocabulary.image.start
    logits = torch.zeros(2, 2, ten_rows.vocab_size)
    logits[..., first] = math.log(3.0)
    is_masked, task = [[True, False], [False, True]], Task.TEXT_TO_IMAGE
    labels = [[first, first], [first, first + 1]]
    # One of two targets of each row is hidden: level 2/3 of the cosine is a ratio of one half.
    losses, part = loss_by_hand(task, logits, ten_rows, is_masked, labels, [0.667, 0.667])
    assert part.has_loss_BT.tolist() == is_masked
    assert losses.total.item() == pytest.approx(0.836988, abs=1e-6)


@pytest.mark.parametrize(
    ("reference", "both", "first"), [(False, 1.084422, 0.340753), (True, 1.084422, 0.681506)]
)
def test_text_by_hand(reference, both, first, context):
    """Four classes: the other columns get a logit so low that they do not count."""
    logits = torch.full((1, 2, context.config.vocab_size), -1e4)
    logits[0, :, :4] = torch.tensor([[2.0, 0, 0, 0], [0, 0, 0, 1.0]])
    for is_masked, expected in ([[True, True]], both), ([[True, False]], first):
        losses, _ = loss_by_hand(
            *(Task.TEXT_TO_TEXT, logits, context.config, is_masked, [[0, 3]], [0.5]),
            reference=reference,
        )
        assert losses.total.item() == pytest.approx(expected, abs=1e-6)


def test_rows_of_the_release_have_denominators_of_their_own():
    """Its loops take the mean of one row on each rank: with a cross-entropy of 1, E[1/p] = 6.92.

    One denominator for the whole step made it 2.10. Images likewise: an image of which much is
    hidden weighs as one of which little is.
    """
    rows, length = 4000, 64
    ids_BT = torch.zeros(rows, length, dtype=torch.int64)
    is_target_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    masked = mask_targets(
        ids_BT, is_target_BT, draw_noise((rows, length), 5), 9, is_one_forced=True
    )
    expected = {True: 6.92, False: 2.0}
    for is_per_row, value in expected.items():
        weights_BT = position_weights(
            "release", masked, ids_BT, torch.full((rows,), length), is_per_row=is_per_row
        )
        assert weights_BT.sum().item() == pytest.approx(value, rel=0.1)
    image = mask_by_schedule(ids_BT, is_target_BT, draw_noise((rows, length), 6), 9)
    weights_BT = position_weights("mean", image, ids_BT, torch.ones(rows), is_per_row=True)
    assert torch.allclose(weights_BT.sum(-1), torch.full((rows,), 1 / rows))
    for task in (Task.TEXT_TO_TEXT, Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE):
        assert objectives(reference=True)[task].is_per_row
    assert not any(one.is_per_row for one in objectives().values())


# --- mixed ----------------------------------------------------------------------------------------


def test_the_total_is_the_weighted_sum_of_the_directions(model, context):
    weights = {task: 0.1 * (index + 1) for index, task in enumerate(TRAINED)}
    batches = batches_of(context)
    mixed = mixed_loss(model, batches, objectives(coefficients=weights), 3)
    expected = sum(weights[task] * loss for task, loss in mixed.per_task.items())
    assert torch.allclose(mixed.total, expected)
    for task, batch in batches.items():
        alone = mixed_loss(model, {task: batch}, objectives(), 3)
        assert torch.equal(alone.per_task[task], mixed.per_task[task])
        assert alone.num_supervised[task] == mixed.num_supervised[task] > 0


def test_the_head_sees_the_masked_rows_and_the_directions_columns_only(model, context):
    """The loss is that of full logits, and other rows of the head get no gradient."""
    for reference in (False, True):
        given = objectives(reference=reference)
        for task, batch in batches_of(context).items():
            model.zero_grad()
            noised = noise_batches({task: batch}, given, context.config, 5)
            losses_of(model, noised, given).total.backward()
            part = noised[task]
            ids = torch.cat([torch.arange(*run) for run in part.columns])
            untouched = torch.ones(model.num_rows, dtype=torch.bool)
            untouched[ids] = False
            rows = model.head_weight.grad
            assert rows[ids].abs().sum() > 0
            assert not rows[untouched].any()

            attend = part.is_visible_BT if part.bias_BTT is None else part.bias_BTT
            logits = model(part.ids_BT, part.positions_BT, attend)[part.has_loss_BT][:, ids]
            nll = -logits.log_softmax(-1)[torch.arange(len(logits)), part.labels_N]
            by_hand = (nll * part.weights_N).sum() / part.denominator
            measured = losses_of(model, noised, given).total
            assert torch.allclose(by_hand, measured, rtol=1e-5)


@pytest.mark.parametrize("form", ["llada_sft", "release", "mmada_pretrain", "mean"])
@pytest.mark.parametrize("is_stratified", [False, True])
def test_parts_of_a_step_add_up_to_the_whole(form, is_stratified, model, context):
    """Eight rows at once, or in parts of 1, 3 and 4: same loss and gradient."""
    tasks = (Task.TEXT_TO_TEXT, Task.TEXT_TO_IMAGE, Task.TEXT_TO_SPEECH)
    given = {
        task: DirectionObjective(
            masking=o.masking, classes=o.classes, normalisation=form, coefficient=o.coefficient
        )
        for task, o in objectives().items()
    }
    rows = {task: samples_of(task, context, 8) for task in tasks}
    config = context.config
    counts = dict.fromkeys(tasks, 8)
    spread = {"is_stratified": is_stratified, "num_stratified": counts}

    whole = noise_batches(
        {task: collate(r) for task, r in rows.items()}, given, config, 1, 2, **spread
    )
    at_once = losses_of(model, whole, given)
    at_once.total.backward()
    expected = gradient(model)
    model.zero_grad()

    parts = []
    for start, stop in ((0, 1), (1, 4), (4, 8)):
        numbers = dict.fromkeys(tasks, range(start, stop))
        cut = {task: collate(r[start:stop]) for task, r in rows.items()}
        parts.append(noise_batches(cut, given, config, 1, 2, rows=numbers, **spread))
    totals = add_totals(denominators(part) for part in parts)
    if form != "mmada_pretrain":  # which counts the padding of a batch
        assert totals == denominators(whole)
    totals = denominators(whole)
    summed = 0.0
    for part in parts:
        losses = losses_of(model, part, given, totals)
        losses.total.backward()
        summed += losses.total.item()
    assert summed == pytest.approx(at_once.total.item(), rel=1e-5)
    assert torch.allclose(gradient(model), expected, rtol=1e-4, atol=1e-7)


def test_a_row_costs_the_same_beside_a_longer_one(model, context):
    """Padding is not attended to, and no loss falls on it."""
    short, long = samples_of(Task.TEXT_TO_TEXT, context, 2)
    given = objectives()
    for row, sample in enumerate((short, long)):
        rows = {Task.TEXT_TO_TEXT: [row]}
        alone = mixed_loss(
            model,
            {Task.TEXT_TO_TEXT: collate([sample])},
            given,
            7,
            rows=rows,
            totals={Task.TEXT_TO_TEXT: 2},
        )
        both = noise_batches({Task.TEXT_TO_TEXT: collate([short, long])}, given, context.config, 7)[
            Task.TEXT_TO_TEXT
        ]
        measured = losses_of(model, {Task.TEXT_TO_TEXT: both}, given)
        nll = torch.split(measured.nll[Task.TEXT_TO_TEXT], both.has_loss_BT.sum(1).tolist())
        assert torch.allclose(nll[row], alone.nll[Task.TEXT_TO_TEXT], rtol=1e-4, atol=1e-6)


def test_directions_have_noise_of_their_own(context):
    batch = collate(samples_of(Task.TEXT_TO_TEXT, context, 4))
    noised = noise_batches(
        {Task.TEXT_TO_TEXT: batch, Task.IMAGE_TO_TEXT: batch}, objectives(), context.config, 1
    )
    first, second = noised.values()
    assert not torch.equal(first.probability_B, second.probability_B)
    again = noise_batches({Task.TEXT_TO_TEXT: batch}, objectives(), context.config, 1)
    assert torch.equal(again[Task.TEXT_TO_TEXT].ids_BT, first.ids_BT)


def test_a_batch_without_a_loss_still_takes_part_in_the_gradient(model, context):
    """Nothing masked: zero, but every parameter has a gradient, as sharded models need."""
    batch = collate(samples_of(Task.TEXT_TO_TEXT, context, 2))
    unlabelled = Batch(
        ids_BT=batch.ids_BT,
        is_target_BT=batch.is_target_BT,
        labels_BT=torch.full_like(batch.labels_BT, IGNORE),
        is_visible_BT=batch.is_visible_BT,
    )
    losses = mixed_loss(model, {Task.TEXT_TO_TEXT: unlabelled}, objectives(), 1)
    losses.total.backward()
    assert losses.total.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    ("scale", "limit", "expected"),
    [
        (1.0, None, 6.0),
        (1.0, 10.0, 6.0),
        (1.0, 2.0, 0.0),  # 6 over 2 positions is 3
        (-1.0, 10.0, 0.0),
        (math.nan, math.inf, 0.0),
        (math.inf, math.inf, 0.0),
    ],
)
def test_the_released_guard(scale, limit, expected):
    nothing = torch.zeros(0)
    part = Noised(
        ids_BT=nothing,
        positions_BT=None,
        is_visible_BT=None,
        has_loss_BT=nothing,
        labels_N=nothing,
        weights_N=torch.ones(2),
        probability_B=nothing,
        is_end_N=nothing,
        columns=((0, 1),),
        denominator=2,
    )
    losses = torch.tensor([2.0, 4.0], requires_grad=True)
    objective = DirectionObjective(
        masking="schedule", classes="image", normalisation="mean", zero_above=limit
    )
    summed = weighted_sum(losses * scale, part, objective)
    assert summed.item() == expected
    assert summed.requires_grad == (expected != 0)


def test_mistakes_are_named(model, context):
    with pytest.raises(ValueError, match="no batch of any direction"):
        mixed_loss(model, {}, objectives(), 1)
    only = {Task.TEXT_TO_TEXT: objectives()[Task.TEXT_TO_TEXT]}
    with pytest.raises(ValueError, match="a batch of t2i, but there are objectives for t2t only"):
        mixed_loss(model, batches_of(context, 1, (Task.TEXT_TO_IMAGE,)), only, 1)


# --- against the formulas as the release is described, and as a whole -----------------------------


def as_described(task, logits_BTV, ids_BT, batch, probability_B, config, is_released):
    """Position by position, in Python: sums, means and classes of the seven losses."""
    v, rows = config.vocabulary, len(ids_BT)
    if task in (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE):
        classes = list(v.image)
    elif task in (Task.TEXT_TO_SPEECH, Task.SPEECH_TO_SPEECH, Task.VIDEO_TO_SPEECH):
        last = config.vocab_size if is_released else v.speech.stop
        classes = [*range(v.speech.start, last), v.eoa, v.eos]
    elif task is Task.TEXT_TO_TEXT or not is_released:
        classes = list(v.text)
    else:
        classes = list(range(config.vocab_size))
    costs, num_masked = [[] for _ in range(rows)], [0] * rows
    for row in range(rows):
        for position, token in enumerate(ids_BT[row].tolist()):
            if token != v.mask:
                continue
            num_masked[row] += 1
            label = int(batch.labels_BT[row, position])
            if label in classes:
                exps = [math.exp(logits_BTV[row, position, c]) for c in classes]
                right = math.exp(logits_BTV[row, position, label])
                costs[row].append(-math.log(right / sum(exps)))
    p = probability_B.tolist()
    lengths = [int(targets.sum()) for targets in batch.is_target_BT]
    if task in (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE):
        if is_released:  # a batch there is one row
            return sum(sum(cost) / len(cost) for cost in costs) / rows
        return sum(map(sum, costs)) / sum(map(len, costs))
    if task is Task.TEXT_TO_TEXT and is_released:
        return sum(sum(c) / p[row] / num_masked[row] for row, c in enumerate(costs)) / rows
    return sum(sum(cost) / p[row] / lengths[row] for row, cost in enumerate(costs)) / rows


@pytest.mark.parametrize("is_released", [False, True])
@pytest.mark.parametrize("task", TRAINED)
def test_every_loss_as_it_is_described(task, is_released, model, context):
    given, config = objectives(reference=is_released), context.config
    batch = batches_of(context, 3, (task,))[task]
    part = noise_batches({task: batch}, given, config, 11)[task]
    with torch.no_grad():
        logits = model(part.ids_BT, part.positions_BT, part.is_visible_BT)
    expected = as_described(
        task, logits, part.ids_BT, batch, part.probability_B, config, is_released
    )
    measured = mixed_loss(model, {task: batch}, given, 11)
    assert measured.total.item() == pytest.approx(expected, rel=1e-5)


def test_a_step_of_all_directions_can_be_learnt(model, context):
    """The same rows with new noise in every step: every direction's loss falls well below chance.

    Judged by the mean cross-entropy of hidden positions, which 1 / p does not make noisy.
    """
    batches = batches_of(context, 4)
    given = {
        task: DirectionObjective(masking=o.masking, classes=o.classes, normalisation="mean")
        for task, o in objectives().items()
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first: dict[Task, float] = {}
    last: dict[Task, list[float]] = {task: [] for task in TRAINED}
    for step in range(60):
        losses = mixed_loss(model, batches, given, 0, step, is_stratified=True)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        for task, loss in losses.per_task.items():
            first.setdefault(task, loss.item())
            last[task] = [*last[task][-4:], loss.item()]
    for task in TRAINED:
        assert sum(last[task]) / 5 < 0.5 * first[task], task
