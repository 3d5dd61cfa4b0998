"""Transfer counts and block plans: the specification's vectors, the general rule, properties."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_dynin.sampling.schedules import BlockSpan, block_spans, transfer_counts

ANY_STEPS = st.integers(1, 2048)


@pytest.mark.parametrize(
    ("num_masked", "num_steps", "counts"),
    [
        (10, 4, [3, 3, 2, 2]),
        (7, 3, [3, 2, 2]),
        (2, 4, [1, 1, 0, 0]),
        (16, 16, [1] * 16),
        (128, 32, [4] * 32),
        (128, 127, [2] + [1] * 126),
        (127, 127, [1] * 127),
        (1024, 512, [2] * 512),
        (5, 1, [5]),
        (0, 5, [0] * 5),
    ],
)
def test_transfer_count_vectors(num_masked, num_steps, counts):
    assert transfer_counts(num_masked, num_steps) == counts


@given(num_masked=st.integers(0, 2048), num_steps=ANY_STEPS)
def test_transfer_counts_share_out_everything_evenly(num_masked, num_steps):
    counts = transfer_counts(num_masked, num_steps)
    assert len(counts) == num_steps
    assert sum(counts) == num_masked
    assert sorted(counts, reverse=True) == counts
    assert counts[0] - counts[-1] <= 1


@pytest.mark.parametrize(
    ("num_slots", "steps", "block_length", "num_blocks", "steps_per_block", "counts"),
    [
        (512, 128, 128, 4, 32, [4] * 32),
        (1024, 1024, 16, 64, 16, [1] * 16),
        (128, 256, 2, 64, 4, [1, 1, 0, 0]),
        (1024, 512, 1024, 1, 512, [2] * 512),
    ],
)
def test_block_plan_vectors(num_slots, steps, block_length, num_blocks, steps_per_block, counts):
    spans = list(block_spans(num_slots, block_length, steps))
    assert len(spans) == num_blocks
    for span in spans:
        assert span.num_steps == steps_per_block
        assert transfer_counts(span.stop - span.start, span.num_steps) == counts


def test_what_does_not_divide():
    # 10 slots in blocks of 4, 7 steps: floor(7·4/10) = 2, floor(7·8/10) - 2 = 3, 7 - 5 = 2.
    assert list(block_spans(10, 4, 7)) == [
        BlockSpan(start=0, stop=4, num_steps=2),
        BlockSpan(start=4, stop=8, num_steps=3),
        BlockSpan(start=8, stop=10, num_steps=2),
    ]
    # Fewer steps than blocks: each block still gets one.
    assert [span.num_steps for span in block_spans(5, 1, 2)] == [1, 1, 1, 1, 1]
    # A block longer than the region is the region.
    assert list(block_spans(3, 8, 2)) == [BlockSpan(start=0, stop=3, num_steps=2)]
    assert list(block_spans(1, 1, 1)) == [BlockSpan(start=0, stop=1, num_steps=1)]


@given(num_slots=st.integers(1, 600), block_length=st.integers(1, 700), num_steps=ANY_STEPS)
def test_blocks_tile_the_slots_and_share_the_steps(num_slots, block_length, num_steps):
    spans = list(block_spans(num_slots, block_length, num_steps))
    assert spans[0].start == 0 and spans[-1].stop == num_slots
    for span, following in itertools.pairwise(spans):
        assert span.stop == following.start
        assert span.stop - span.start == block_length
    assert 1 <= spans[-1].stop - spans[-1].start <= block_length
    assert all(span.num_steps >= 1 for span in spans)
    total = sum(span.num_steps for span in spans)
    assert num_steps <= total <= max(num_steps + len(spans), len(spans))
    if num_steps >= num_slots:  # then no share is below one and nothing is added
        assert total == num_steps


@given(num_blocks=st.integers(1, 40), block_length=st.integers(1, 40), share=st.integers(1, 40))
def test_the_rule_is_the_originals_where_it_divides(num_blocks, block_length, share):
    spans = list(block_spans(num_blocks * block_length, block_length, num_blocks * share))
    assert [span.num_steps for span in spans] == [share] * num_blocks
