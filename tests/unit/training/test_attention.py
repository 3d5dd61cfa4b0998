"""What training lets a position attend to, and what the released code did."""

import pytest
import torch

from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.processors import templates as tp
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.tokens import Vocabulary
from vllm_dynin.training_ext.attention import released_bias, seen
from vllm_dynin.training_ext.collate import collate
from vllm_dynin.training_ext.initialise import initialise
from vllm_dynin.training_ext.objective import Masked

V = Vocabulary(num_text_pieces=20, num_image_codes=8, num_speech_units=8)


def one_masked(batch, position):
    is_masked = torch.zeros_like(batch.is_target_BT)
    is_masked[:, position] = True
    return Masked(
        ids_BT=batch.ids_BT.masked_fill(is_masked, V.mask),
        is_masked_BT=is_masked,
        probability_B=torch.full((batch.shape[0],), 0.5),
    )


def rows(*texts, keeps_padding):
    heads = [tp.text_to_image_head(text, V, text_block=6) for text in texts]
    samples = [
        tp.build_sample(head, [V.image.start] * (1 + i), vocabulary=V, num_rows=400)
        for i, head in enumerate(heads)
    ]
    return collate(samples, keeps_padding=keeps_padding)


def test_bias_of_a_mask_that_was_assigned_into_floats():
    """The first of three positions is padding; with zero queries its weight is not 0 but 0.155."""
    bias = released_bias(torch.tensor([[False, True, True]]))
    assert bias[0].tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 1]]
    query = torch.zeros(1, 1, 3, 4)
    value = torch.eye(3)[None, None]
    weights = torch.nn.functional.scaled_dot_product_attention(
        query, query, value, attn_mask=bias[:, None]
    )
    assert weights[0, 0, 1].tolist() == pytest.approx([0.155362, 0.422319, 0.422319], abs=1e-6)
    mask = torch.tensor([False, True, True])[None, None, None]
    true = torch.nn.functional.scaled_dot_product_attention(query, query, value, attn_mask=mask)
    assert true[0, 0, 1].tolist() == pytest.approx([0, 0.5, 0.5])


def test_padding_has_no_row_by_default():
    batch = rows([3], [3, 4, 5], keeps_padding=False)
    masked = one_masked(batch, -1)
    visible, bias = seen(batch, masked, "visible", V)
    assert bias is None
    assert batch.ids_BT.tolist()[0][:5] == [V.t2i, V.bos, 3, V.eos, V.soi]
    assert batch.positions_BT.tolist()[0][:5] == [2, 3, 4, 5, 6]
    assert visible.tolist() == [[True] * 7 + [False] * 3, [True] * 10]


def test_released_forms():
    batch = rows([3], [3, 4, 5], keeps_padding=True)
    assert batch.positions_BT is None
    masked = one_masked(batch, 7)
    pad, eos = 2, 5  # of the first row; its last position ends a shorter row
    inside = [True] * 9 + [False]
    visible, bias = seen(batch, masked, "released_all", V)
    assert bias is None and visible.tolist() == [inside, [True] * 10]
    visible, bias = seen(batch, masked, "released_eos", V)
    assert bias is None
    assert visible[0].tolist() == [
        shown and i >= pad and i != eos for i, shown in enumerate(inside)
    ]
    visible, bias = seen(batch, masked, "released_bias", V)
    assert visible is None
    assert bias[0, 8].tolist() == [0, 0, *[1] * 7, -torch.inf]
    assert bias[0, 0].tolist() == [*[0] * 9, -torch.inf]
    assert bias[1].eq(1).all()


def test_a_masked_eos_is_visible_in_the_released_third_stage():
    batch = collate([tp.build_sample([V.bos, 3], [4], vocabulary=V, num_rows=400, num_targets=3)])
    hidden, _ = seen(batch, one_masked(batch, 2), "released_eos", V)
    shown, _ = seen(batch, one_masked(batch, 3), "released_eos", V)
    assert hidden.tolist() == [[True, True, True, False, False]]
    assert shown.tolist() == [[True, True, True, True, False]]


def test_the_model_adds_a_bias_to_its_scores():
    """-inf hides a key as a mask does; a row's finite constant changes nothing."""
    config = DyninOmniConfig(
        d_model=16,
        n_heads=2,
        n_layers=2,
        mlp_hidden_size=32,
        text_vocab_size=300,
        codebook_size=4,
        speech_codebook_size=4,
    )
    model = LLaDA(config)
    initialise(model, 0)
    ids = torch.randint(0, 300, (2, 5), generator=torch.Generator().manual_seed(0))
    visible = torch.tensor([[True, True, True, False, True], [True] * 5])
    masked = model(ids, attend=visible)
    bias = torch.zeros(2, 5, 5).masked_fill(~visible[:, None, :], -torch.inf)
    assert torch.allclose(model(ids, attend=bias), masked, atol=1e-6)
    constant = bias + torch.randn(2, 5, 1)
    assert torch.allclose(model(ids, attend=constant), masked, atol=1e-5)
    uneven = bias + torch.randn(2, 5, 5)
    assert not torch.allclose(model(ids, attend=uneven), masked, atol=1e-3)
    with pytest.raises(ValueError, match=r"attend is torch\.float32"):
        model(ids, attend=bias[0])
