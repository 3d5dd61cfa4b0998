"""Packed rows cost what they cost unpacked, and leave the same gradients."""

import pytest
import torch
from helpers.training_runs import DIRECTIONS, small_model, small_trainer

from vllm_dynin.config import LLaDAConfig
from vllm_dynin.reference.backbone import LLaDA, segment_mask
from vllm_dynin.training_ext.directions import objectives
from vllm_dynin.training_ext.initialise import initialise
from vllm_dynin.training_ext.losses import losses_of
from vllm_dynin.training_ext.trainer import TrainConfig
from vllm_dynin.training_ext.trainer.packing import (
    RowAttention,
    attend_by_runs,
    best_op,
    pack,
    packed_hidden,
)


@pytest.fixture(scope="module")
def noised():
    """Rows of every direction, of different lengths within a direction too."""
    trainer = small_trainer(TrainConfig(num_steps=1, seed=2), rows=3)
    (found,) = trainer._noise(trainer.feed.next_step())
    return found


def gradients(model):
    return {name: weight.grad for name, weight in model.named_parameters()}


def test_packed_rows_have_the_losses_and_gradients_of_unpacked_ones(noised):
    assert any(part.is_visible_BT is not None for part in noised.values())
    assert any(part.positions_BT is not None for part in noised.values())
    plain, packed = small_model(), small_model()
    expected = losses_of(plain, noised, objectives())
    found = losses_of(packed, noised, objectives(), hidden=packed_hidden(packed, noised))
    expected.total.backward()
    found.total.backward()
    for task in DIRECTIONS:
        assert found.per_task[task].item() == pytest.approx(
            expected.per_task[task].item(), rel=1e-5
        )
        assert torch.allclose(found.nll[task], expected.nll[task], atol=1e-5), task
    for name, gradient in gradients(plain).items():
        assert torch.allclose(gradients(packed)[name], gradient, atol=2e-6), name


def test_nothing_but_rows_is_packed(noised):
    packed = pack(noised)
    visible = sum(
        part.ids_BT.numel() if part.is_visible_BT is None else int(part.is_visible_BT.sum())
        for part in noised.values()
    )
    padded = sum(part.ids_BT.numel() for part in noised.values())
    assert len(packed.ids_S) == len(packed.positions_S) == sum(packed.lengths) == visible < padded
    assert len(packed.lengths) == sum(len(part.ids_BT) for part in noised.values())
    for task, part in noised.items():
        start, stop = packed.spans[task]
        assert int(packed.has_loss_S[start:stop].sum()) == len(part.labels_N)


@pytest.mark.parametrize("lengths", [(1,), (7,), (3, 3, 3), (5, 1, 1, 8), (2, 0, 2), (1, 13, 4, 4)])
@pytest.mark.parametrize("num_heads", [(4, 4), (4, 2)], ids=["heads", "grouped"])
def test_attention_by_runs_is_block_diagonal_attention(lengths, num_heads):
    """Against one masked attention over the whole packed row."""
    generator = torch.Generator().manual_seed(0)
    total, (heads, key_heads) = sum(lengths), num_heads
    q = torch.randn(1, heads, total, 8, generator=generator)
    k, v = torch.randn(2, 1, key_heads, total, 8, generator=generator)
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=segment_mask(segments[None])[:, None], enable_gqa=True
    )
    found = RowAttention(lengths)(q, k, v)
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_choice_of_attention_is_logged_once(caplog):
    best_op.cache_clear()
    with caplog.at_level("INFO"):
        assert best_op("cpu", torch.float32) is attend_by_runs
        assert best_op("cpu", torch.float32) is attend_by_runs
    assert [record.message for record in caplog.records] == [
        "packed attention on cpu in torch.float32: torch, row by row"
    ]


def test_a_packed_run_equals_a_padded_one():
    settings = {"num_steps": 3, "seed": 3, "learning_rate": 1e-3, "num_warmup_steps": 1}
    reports = {}
    for is_packed in (False, True):
        trainer = small_trainer(TrainConfig(**settings, is_packed=is_packed), rows=3)
        reports[is_packed] = list(trainer.steps())
    for plain, packed in zip(reports[False], reports[True], strict=True):
        assert packed.loss == pytest.approx(plain.loss, rel=1e-4)
        assert packed.grad_norm == pytest.approx(plain.grad_norm, rel=1e-3)
        assert packed.num_positions < plain.num_positions


def test_grouped_heads_pack_in_the_model():
    config = LLaDAConfig(
        d_model=32, n_heads=2, n_kv_heads=1, n_layers=1, mlp_hidden_size=32, text_vocab_size=300
    )
    model = LLaDA(config)
    initialise(model, 0)
    ids = torch.randint(0, 31, (1, 9), generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    packed = model.hidden(ids, positions, RowAttention((4, 5)))
    alone = torch.cat((model.hidden(ids[:, :4]), model.hidden(ids[:, 4:])), dim=1)
    assert torch.allclose(packed, alone, atol=1e-5)


def test_on_a_cpu_bfloat16_rows_attend_in_float32():
    """The same numbers as in float32, rounded; under autocast too, which would cast them again."""
    torch.manual_seed(0)
    rows = [torch.randn(23, 4, 8).bfloat16().requires_grad_() for _ in range(3)]
    expected = attend_by_runs(*(x.float() for x in rows), (9, 14))
    with torch.autocast("cpu", torch.bfloat16):
        found = best_op("cpu", torch.bfloat16)(*rows, (9, 14))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())
    found.float().square().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in rows)
