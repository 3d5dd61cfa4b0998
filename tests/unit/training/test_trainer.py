"""Learning rate, optimizer groups, and a run that repeats bit for bit."""

import pytest
import torch
import torch.distributed as dist

from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.processors.templates import IGNORE, build_sample
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.training_ext.collate import collate
from vllm_dynin.training_ext.initialise import initialise
from vllm_dynin.training_ext.losses import mixed_loss
from vllm_dynin.training_ext.small_text import objectives
from vllm_dynin.training_ext.tiny_text.recipe import batch_at, run, tiny_text
from vllm_dynin.training_ext.trainer import FunctionFeed, TrainConfig, train, warmup_cosine
from vllm_dynin.training_ext.trainer.optimiser import make_optimizer
from vllm_dynin.training_ext.trainer.parallel import Parallel

CONFIG = LLaDAConfig(d_model=32, n_heads=1, n_layers=2, mlp_hidden_size=48, text_vocab_size=300)


def small_model(seed=0):
    model = LLaDA(CONFIG)
    initialise(model, seed)
    return model


def sample(head, answer, num_targets):
    vocabulary = CONFIG.vocabulary
    return build_sample(
        (vocabulary.bos, *head),
        answer,
        vocabulary=vocabulary,
        num_rows=CONFIG.vocab_size,
        num_targets=num_targets,
    )


@pytest.mark.parametrize(
    ("step", "floor", "expected"),
    [
        (0, 0.0, 0.0),
        (1500, 0.0, 0.5),
        (3000, 0.0, 1.0),
        (101_500, 0.0, 0.5),
        (101_500, 0.1, 0.55),
        (200_000, 0.0, 0.0),
        (200_000, 0.1, 0.1),
        (397_000, 0.1, 0.1),  # the original's formula is back at the peak here
    ],
)
def test_learning_rate(step, floor, expected):
    assert warmup_cosine(step, 3000, 200_000, floor) == pytest.approx(expected)


def test_only_matrices_decay():
    model = small_model()
    decayed, others = make_optimizer(model, TrainConfig(num_steps=1, weight_decay=0.1)).param_groups
    assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0.0
    assert {p.ndim for p in decayed["params"]} == {2}
    norms = [name for name, p in model.named_parameters() if "norm" in name or "ln_f" in name]
    assert len(others["params"]) == len(norms) == 5


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_steps=0 must be at least 1"):
        TrainConfig(num_steps=0)
    with pytest.raises(ValueError, match="learning_rate=-1 must be above 0"):
        TrainConfig(num_steps=1, learning_rate=-1)


def test_collate_hides_what_it_adds():
    batch = collate([sample([5], [6], 2), sample([5, 6, 7], [8, 9], 4)])
    eos = CONFIG.vocabulary.eos
    assert batch.shape == (2, 8)
    assert batch.ids_BT[0, :4].tolist() == [CONFIG.vocabulary.bos, 5, 6, eos]
    assert batch.is_target_BT.sum(1).tolist() == [2, 4]
    assert batch.labels_BT[0, 4:].tolist() == [IGNORE] * 4
    assert batch.is_visible_BT is not None
    assert batch.is_visible_BT.sum(1).tolist() == [4, 8]
    assert collate([sample([5], [6], 2)]).is_visible_BT is None


def test_a_rows_loss_does_not_depend_on_its_neighbours_length():
    model = small_model()
    short, long = sample([5], [6], 3), sample([5, 6, 7, 8, 9], [8, 9, 10], 9)
    task = Task.TEXT_TO_TEXT
    alone = mixed_loss(model, {task: collate([short])}, objectives(), 0)
    padded = collate([short, long])
    # The same row with the same draws, beside positions that only the longer row has.
    padded = type(padded)(
        ids_BT=padded.ids_BT[:1],
        is_target_BT=padded.is_target_BT[:1],
        labels_BT=padded.labels_BT[:1],
        is_visible_BT=padded.is_visible_BT[:1],
    )
    beside = mixed_loss(model, {task: padded}, objectives(), 0)
    assert alone.num_supervised == beside.num_supervised
    assert torch.allclose(alone.total, beside.total, atol=1e-5)


def test_training_overfits_one_batch_and_touches_every_weight():
    model = small_model()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    batch = collate([sample([5, 6], [7, 8, 9], 4), sample([20, 21], [10, 11, 12], 4)])
    config = TrainConfig(num_steps=200, learning_rate=3e-3, num_warmup_steps=5, weight_decay=0.0)
    feed = FunctionFeed(lambda step: batch)
    losses = [report.loss for report in train(model, feed, objectives(), config)]
    assert sum(losses[:5]) / 5 > 2
    assert sum(losses[-20:]) / 20 < 0.05
    assert all(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert not model.training


def test_a_run_repeats_bit_for_bit():
    recipe = tiny_text(seed=3, num_steps=4)
    first, tokenizer, _ = run(recipe)
    second, again, _ = run(recipe)
    assert tokenizer.get_vocab() == again.get_vocab()
    for (name, weight), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(weight, other), name
    other_seed, _, _ = run(tiny_text(seed=4, num_steps=4))
    assert not torch.equal(first.head_weight, other_seed.head_weight)


def test_batches_do_not_depend_on_what_was_drawn_before():
    recipe = tiny_text(num_steps=100)
    model, tokenizer, _ = run(tiny_text(num_steps=1))
    batch = batch_at(recipe, model.config, tokenizer, 57)
    batch_at(recipe, model.config, tokenizer, 3)
    assert torch.equal(batch.ids_BT, batch_at(recipe, model.config, tokenizer, 57).ids_BT)
    assert batch.is_visible_BT is None  # every region is filled up to one length


def test_a_run_leaves_the_process_group_of_others_alone() -> None:
    """An engine in this process has one: without it the engine cannot end without a traceback."""
    is_ours = not dist.is_initialized()  # engines of other tests may have left theirs
    if is_ours:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        Parallel(TrainConfig(num_steps=1)).close()
        assert dist.is_initialized()
    finally:
        if is_ours:
            dist.destroy_process_group()
