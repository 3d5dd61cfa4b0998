"""Masking and losses against numbers worked out by hand (docs of the objective name the forms)."""

import pytest
import torch
import torch.nn.functional as F

from vllm_dynin.processors.templates import IGNORE, build_sample
from vllm_dynin.tokens import Vocabulary
from vllm_dynin.training_ext.collate import collate
from vllm_dynin.training_ext.objective import (
    Masked,
    Noise,
    answer_lengths,
    class_labels,
    draw_noise,
    mask_by_schedule,
    mask_targets,
    position_weights,
)

VOCABULARY = Vocabulary(num_text_pieces=20, num_image_codes=0, num_speech_units=0)
MASK = VOCABULARY.mask


def masked_batch(is_masked, probability):
    is_masked = torch.tensor(is_masked)
    return Masked(
        ids_BT=torch.zeros_like(is_masked, dtype=torch.int64),
        is_masked_BT=is_masked,
        probability_B=torch.tensor(probability),
    )


# --- masking --------------------------------------------------------------------------------------


def test_probability_of_a_level():
    noise = Noise(level_B=torch.tensor([0.25, 0.0]), uniform_BT=torch.ones(2, 3))
    masked = mask_targets(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), noise, MASK)
    assert masked.probability_B.tolist() == pytest.approx([0.25075, 0.001], abs=1e-8)


def test_only_targets_are_hidden():
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    is_target = torch.tensor([[False, False, True, True, True]])
    uniform = torch.tensor([[0.0, 0.9, 0.49, 0.51, 0.0]])
    noise = Noise(level_B=torch.tensor([0.4995]), uniform_BT=uniform)  # p is 0.4999995
    masked = mask_targets(ids, is_target, noise, MASK)
    assert masked.is_masked_BT.tolist() == [[False, False, True, False, True]]
    assert masked.ids_BT.tolist() == [[5, 6, MASK, 8, MASK]]
    assert ids.tolist() == [[5, 6, 7, 8, 9]]


def test_a_clean_mask_id_is_not_taken_for_hidden():
    ids = torch.tensor([[MASK, 6]])
    noise = Noise(level_B=torch.tensor([0.0]), uniform_BT=torch.ones(1, 2))
    masked = mask_targets(ids, torch.ones(1, 2, dtype=torch.bool), noise, MASK)
    assert not masked.is_masked_BT.any()


def test_one_target_is_forced_where_none_was_drawn():
    is_target = torch.tensor([[False, True, True], [True, True, True], [False, False, False]])
    uniform = torch.tensor([[0.1, 0.9, 0.8], [0.1, 0.9, 0.8], [0.2, 0.3, 0.4]])
    noise = Noise(level_B=torch.tensor([0.0, 0.5, 0.0]), uniform_BT=uniform)
    ids = torch.zeros(3, 3, dtype=torch.int64)
    masked = mask_targets(ids, is_target, noise, MASK, is_one_forced=True)
    assert masked.is_masked_BT.tolist() == [
        [False, False, True],  # the lowest draw among the targets
        [True, False, False],  # was drawn
        [False, False, False],  # has no target
    ]


def test_the_forced_target_is_anywhere_equally_likely():
    is_target = torch.tensor([[False, True, True, True, True, False]]).expand(4000, -1)
    noise = draw_noise((4000, 6), 1)
    none = Noise(level_B=torch.zeros(4000), uniform_BT=noise.uniform_BT * 0.9 + 0.1)
    ids = torch.zeros(4000, 6, dtype=torch.int64)
    masked = mask_targets(ids, is_target, none, MASK, is_one_forced=True)
    assert masked.is_masked_BT.sum(1).eq(1).all()
    counts = masked.is_masked_BT.sum(0)
    assert counts[[0, 5]].tolist() == [0, 0]
    assert counts[1:5].min() > 880 and counts[1:5].max() < 1120  # 1000 each, 4.4 sigma


def test_noise_depends_on_its_key_and_row_alone():
    whole, again, part = (
        draw_noise((4, 7), 3, 1),
        draw_noise((4, 7), 3, 1),
        draw_noise((2, 7), 3, 1),
    )
    assert torch.equal(whole.level_B, again.level_B)
    assert torch.equal(whole.uniform_BT, again.uniform_BT)
    assert torch.equal(whole.uniform_BT[:2], part.uniform_BT)
    other = draw_noise((4, 7), 3, 2)
    assert not torch.equal(whole.uniform_BT, other.uniform_BT)


def test_levels_are_uniform():
    plain = draw_noise((2000, 1), 5).level_B
    spread = torch.cat([draw_noise((8, 1), 5, n, is_stratified=True).level_B for n in range(250)])
    for levels in (plain, spread):
        quarters = torch.histc(levels, bins=4, min=0, max=1)
        assert quarters.min() > 420 and quarters.max() < 580  # 500 each, 4 sigma
    one = draw_noise((8, 1), 5, is_stratified=True).level_B.sort().values
    assert torch.allclose(one.diff(), torch.full((7,), 1 / 8), atol=1e-6)


# --- losses ---------------------------------------------------------------------------------------


def whole_loss(logits, labels):
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")


@pytest.mark.parametrize(
    ("form", "both", "first"),
    [
        ("llada_sft", 1.084422, 0.340753),
        ("release", 1.084422, 0.681506),
        ("mmada_pretrain", 0.542211, 0.170377),
        ("mean", 0.542211, 0.340753),
    ],
)
def test_three_normalisations(form, both, first):
    """Prompt of two tokens, answer [0, 3] of four classes, p = 0.5."""
    logits = torch.tensor([[2.0, 0, 0, 0], [0, 0, 0, 1.0]])
    labels = torch.tensor([[IGNORE, IGNORE, 0, 3]])
    losses = whole_loss(logits, labels[0, 2:])
    assert losses.tolist() == pytest.approx([0.340753, 0.743668], abs=1e-6)
    is_target = torch.tensor([[False, False, True, True]])
    for is_masked, expected in (
        ([[False, False, True, True]], both),
        ([[False, False, True, False]], first),
    ):
        weights = position_weights(
            form, masked_batch(is_masked, [0.5]), labels, answer_lengths(is_target, labels)
        )
        assert weights[0, :2].tolist() == [0, 0]
        assert (weights[0, 2:] * losses).sum().item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        # rows of 1 and 3 targets with p = 0.5 and 0.25, all hidden
        ("llada_sft", [[1 / 0.5 / 1 / 2, 0, 0], [1 / 0.25 / 3 / 2] * 3]),
        ("release", [[1 / 0.5 / 4, 0, 0], [1 / 0.25 / 4] * 3]),
        ("mmada_pretrain", [[1 / 0.5 / 6, 0, 0], [1 / 0.25 / 6] * 3]),
        ("mean", [[1 / 4, 0, 0], [1 / 4] * 3]),
    ],
)
def test_normalisations_of_two_rows(form, expected):
    is_target = torch.tensor([[True, False, False], [True, True, True]])
    labels = torch.where(is_target, 1, IGNORE)
    masked = masked_batch(is_target.tolist(), [0.5, 0.25])
    weights = position_weights(form, masked, labels, answer_lengths(is_target, labels))
    assert torch.allclose(weights, torch.tensor(expected))


@pytest.mark.parametrize(
    ("is_masked", "policy", "region", "supervised"),
    [
        ([True] * 4, "all", 3.75, 3.75),
        ([True] * 4, "first", 0.75, 1.5),
        ([True] * 4, "none", 0.25, 1.0),
        ([True, False, True, False], "all", 1.25, 1.25),
        ([True, False, True, False], "first", 0.25, 0.5),
        ([True, False, True, False], "none", 0.25, 1.0),
    ],
)
def test_eos_policies(is_masked, policy, region, supervised):
    """Answer region [a, EOS, EOS, EOS] with losses [0.5, 1, 2, 4] and p = 0.5."""
    head = (VOCABULARY.bos, 1)
    sample = build_sample(
        head, [7], vocabulary=VOCABULARY, num_rows=289, num_targets=4, eos_policy=policy
    )
    batch = collate([sample])
    masked = masked_batch([[False, False, *is_masked]], [0.5])
    for mode, expected in (("region", region), ("supervised", supervised)):
        lengths = answer_lengths(batch.is_target_BT, batch.labels_BT, mode)
        weights = position_weights("llada_sft", masked, batch.labels_BT, lengths)
        loss = (weights[0, 2:] * torch.tensor([0.5, 1.0, 2.0, 4.0])).sum()
        assert loss.item() == pytest.approx(expected)


def test_restricted_softmax_of_speech():
    """Ten rows: EOS 1, end of audio 2, units 6 to 9; classes are units, end of audio, EOS."""
    classes = [(6, 10), (2, 3), (1, 2)]
    labels = torch.tensor([7, 2, 5])
    found = class_labels(labels, classes)
    assert found.tolist() == [1, 4, IGNORE]
    logits = torch.zeros(3, 10)
    logits[0, 7], logits[1, 2] = 1.0, 2.0
    columns = torch.cat([torch.arange(*ids) for ids in classes])
    losses = whole_loss(logits[:, columns], found)
    assert losses.tolist() == pytest.approx([1.043592, 0.516814, 0.0], abs=1e-6)
    assert whole_loss(logits[:2], labels[:2]).tolist() == pytest.approx(
        [1.461150, 0.796614], abs=1e-6
    )
    masked = masked_batch([[True, True]], [0.25])
    weights = position_weights("llada_sft", masked, found[None, :2], torch.tensor([2]))
    assert (weights[0] * losses[:2]).sum().item() == pytest.approx(3.120811, abs=1e-6)


def test_the_loss_is_an_unbiased_bound():
    """Averaged over noise, `llada_sft` of constant losses c is c: E[masked / p] = answer length."""
    is_target = torch.tensor([[False] * 3 + [True] * 8])
    labels = torch.where(is_target, 1, IGNORE)
    lengths = answer_lengths(is_target, labels)
    rows = 4000
    noise = draw_noise((rows, 11), 9, is_stratified=True)
    masked = mask_targets(
        torch.zeros(rows, 11, dtype=torch.int64), is_target.expand(rows, -1), noise, MASK
    )
    weights = position_weights("llada_sft", masked, labels.expand(rows, -1), lengths.expand(rows))
    assert weights.sum().item() == pytest.approx(1.0, abs=0.05)


# --- masking by schedule --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_targets", "expected"),
    [
        (16, {0: 16, 0.25: 15, 0.5: 11, 0.75: 6, 0.9: 3, 1: 1}),
        (1024, {0: 1024, 0.25: 946, 0.5: 724, 0.75: 392, 0.9: 160, 1: 1}),
    ],
)
def test_images_hide_as_many_as_the_schedule_says(num_targets, expected):
    levels = torch.tensor(list(expected))
    rows, length = len(levels), num_targets + 3
    is_target = torch.zeros(rows, length, dtype=torch.bool)
    is_target[:, 2:-1] = True
    noise = Noise(level_B=levels, uniform_BT=draw_noise((rows, length), 4).uniform_BT)
    ids = torch.arange(length).expand(rows, -1) + 100
    masked = mask_by_schedule(ids, is_target, noise, MASK)
    assert masked.is_masked_BT.sum(1).tolist() == list(expected.values())
    assert not (masked.is_masked_BT & ~is_target).any()
    assert torch.equal(masked.ids_BT, ids.masked_fill(masked.is_masked_BT, MASK))
    assert masked.probability_B.tolist() == pytest.approx(
        [k / num_targets for k in expected.values()]
    )


def test_halves_round_to_even():
    """Linear schedule, five targets: ratios 0.5 and 0.3 are 2.5 and 1.5 targets."""
    noise = Noise(level_B=torch.tensor([0.5, 0.7]), uniform_BT=torch.rand(2, 5))
    is_target = torch.ones(2, 5, dtype=torch.bool)
    masked = mask_by_schedule(torch.zeros(2, 5), is_target, noise, MASK, schedule="linear")
    assert masked.is_masked_BT.sum(1).tolist() == [2, 2]


def test_min_ratio_is_a_floor_and_rows_may_differ_in_targets():
    is_target = torch.tensor([[True] * 8, [True] * 4 + [False] * 4, [False] * 8])
    noise = Noise(level_B=torch.ones(3), uniform_BT=draw_noise((3, 8), 1).uniform_BT)
    masked = mask_by_schedule(torch.zeros(3, 8), is_target, noise, MASK, min_ratio=0.5)
    assert masked.is_masked_BT.sum(1).tolist() == [4, 2, 0]
    assert not (masked.is_masked_BT & ~is_target).any()


def test_each_choice_of_targets_is_equally_likely():
    rows = 6000
    noise = Noise(level_B=torch.full((rows,), 0.5), uniform_BT=draw_noise((rows, 4), 2).uniform_BT)
    masked = mask_by_schedule(
        torch.zeros(rows, 4), torch.ones(rows, 4, dtype=torch.bool), noise, MASK, schedule="linear"
    )
    codes = (masked.is_masked_BT * torch.tensor([1, 2, 4, 8])).sum(1)
    counts = torch.bincount(codes, minlength=16)
    pairs = [3, 5, 6, 9, 10, 12]
    assert counts.sum() == counts[pairs].sum()
    assert counts[pairs].min() > 870 and counts[pairs].max() < 1130  # 1000 each, 4.5 sigma


def test_mean_mask_ratio_of_the_cosine_schedule():
    levels = draw_noise((20_000, 1), 3).level_B
    noise = Noise(level_B=levels, uniform_BT=torch.rand(20_000, 64))
    is_target = torch.ones(20_000, 64, dtype=torch.bool)
    masked = mask_by_schedule(torch.zeros(20_000, 64), is_target, noise, MASK)
    assert masked.probability_B.mean().item() == pytest.approx(2 / torch.pi, abs=0.008)


def test_restricted_softmax_of_images():
    """Ten rows, image codes 4 and 5: both masked, logit ln 3 at 4."""
    logits = torch.zeros(2, 10)
    logits[:, 4] = torch.log(torch.tensor(3.0))
    labels = class_labels(torch.tensor([4, 5]), [(4, 6)])
    losses = whole_loss(logits[:, 4:6], labels)
    weights = position_weights(
        "mean", masked_batch([[True, True]], [1.0]), labels[None], torch.tensor([2])
    )
    assert (weights[0] * losses).sum().item() == pytest.approx(0.836988, abs=1e-6)
    whole = whole_loss(logits, torch.tensor([4, 5]))
    assert whole.mean().item() == pytest.approx(1.935600, abs=1e-6)


# --- noise of a step that is shared out -----------------------------------------------------------


def test_noise_follows_the_number_of_a_row_not_its_place_or_length():
    whole = draw_noise((6, 40), 8)
    part = draw_noise((2, 25), 8, rows=[4, 1])
    assert torch.equal(part.level_B, whole.level_B[[4, 1]])
    assert torch.equal(part.uniform_BT, whole.uniform_BT[[4, 1], :25])


def test_stratified_levels_are_those_of_the_whole_step():
    whole = draw_noise((6, 4), 8, is_stratified=True)
    part = draw_noise((2, 4), 8, rows=[4, 1], is_stratified=True, num_stratified=6)
    assert torch.allclose(part.level_B, whole.level_B[[4, 1]])


def test_mean_of_the_inverse_probability():
    """What makes `release` weigh rows with a small p so heavily: E[1/p] = ln(1000) / 0.999."""
    levels = (torch.arange(2_000_000, dtype=torch.float64) + 0.5) / 2_000_000
    noise = Noise(level_B=levels, uniform_BT=torch.ones(2_000_000, 1))
    is_target = torch.ones(2_000_000, 1, dtype=torch.bool)
    masked = mask_targets(is_target.long(), is_target, noise, MASK)
    assert (1 / masked.probability_B).mean().item() == pytest.approx(6.9147, abs=1e-3)


def test_the_released_forced_position_may_be_undone():
    is_target = torch.tensor([[False, True, True], [False, True, True], [False, True, True]])
    uniform = torch.tensor([[0.5, 0.9, 0.8], [0.9, 0.5, 0.8], [0.0, 0.9, 0.8]])
    noise = Noise(level_B=torch.zeros(3), uniform_BT=uniform)
    ids = torch.zeros(3, 3, dtype=torch.int64)
    masked = mask_targets(ids, is_target, noise, MASK, is_one_forced=True, is_forced_anywhere=True)
    assert masked.is_masked_BT.tolist() == [
        [False, False, False],  # fell into the condition
        [False, True, False],
        [False, False, False],  # the condition drew one itself, so none was forced
    ]
