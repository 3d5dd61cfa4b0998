"""Columns of a restricted head."""

import pytest
import torch

from vllm_dynin.sampling.columns import Columns

CPU = torch.device("cpu")


def test_ids_stand_in_the_order_of_the_ranges():
    columns = Columns(((7, 10), (2, 3), (4, 5)))
    assert columns.width == 5
    assert columns.ids(CPU).tolist() == [7, 8, 9, 2, 4]
    assert columns.ids(CPU).dtype == torch.int64


def test_excluded_ids_keep_a_column_at_minus_infinity():
    columns = Columns(((10, 14), (2, 4)), excluded=(3, 11))
    logits = torch.zeros(2, 6)
    assert columns.forbid_excluded(logits) is logits
    expected = [0.0, -torch.inf, 0.0, 0.0, 0.0, -torch.inf]
    assert logits.tolist() == [expected, expected]


def test_equal_columns_share_their_tensor():
    assert Columns(((0, 3),)).ids(CPU) is Columns(((0, 3),)).ids(CPU)
    assert Columns(((0, 3),)) == Columns(((0, 3),))
    assert Columns(((0, 3),)) != Columns(((0, 3),), excluded=(1,))


@pytest.mark.parametrize("ranges", [(), ((3, 3),), ((4, 2),), ((-1, 2),)])
def test_empty_ranges_are_refused(ranges):
    with pytest.raises(ValueError, match="must be non-empty"):
        Columns(ranges)


def test_ids_made_by_an_engine_can_be_trained_with():
    columns = Columns(((5, 9), (90_011, 90_013)))
    with torch.inference_mode():
        ids = columns.ids(torch.device("cpu"))
    weight = torch.ones(90_020, requires_grad=True)
    weight[ids].sum().backward()
    assert weight.grad.sum() == 6
