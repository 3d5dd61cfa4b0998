"""Rows of guided requests as the engine lays them out, with the ids of the published vocabulary.

KV blocks of 8 rows. Ids as numbers: 126080 BOS, 126081 EOS, 126084 soi, 126085 eoi, 126093 PAD,
126097 soa, 126336 mask; image code c is 126349 + c. Row 0 of padding is id 0 at position 0.
"""

import pytest

from vllm_dynin import canvas as cv
from vllm_dynin.model_executor.row_layout import RowLayout, prompt_rows, row_positions
from vllm_dynin.processors import templates as tp
from vllm_dynin.tokens import DYNIN_OMNI as V

M, P = 126336, 0
BOS, EOS, SOI, EOI, SOA = 126080, 126081, 126084, 126085, 126097
BLOCK = 8


def laid_out(head, targets, parity=cv.Parity.DEFAULT, **options):
    canvas = tp.from_head(
        head,
        targets,
        vocabulary=V,
        num_rows=138752,
        parity=parity,
        **({"is_guided": True} | options),
    )
    layout = RowLayout.of(canvas, BLOCK)
    ids = [*prompt_rows(canvas, layout), *canvas.slots]
    positions = row_positions(canvas, layout)
    assert len(ids) == len(positions) == layout.num_rows
    return layout, ids, positions


def test_text_hides_the_prompt() -> None:
    layout, ids, positions = laid_out(tp.text_head([7, 8], V), 3)
    assert ids == [M, M, M, M, M, M, P, P, BOS, 7, 8, M, M, M]
    assert positions == [0, 1, 2, 3, 4, 5, 0, 0, 0, 1, 2, 3, 4, 5]
    assert layout == RowLayout(
        num_slots=3, unconditional_canvas=3, unconditional_stop=6, conditional_start=8, canvas=11
    )


def test_no_guidance_is_prompt_and_canvas() -> None:
    layout, ids, positions = laid_out(tp.image_to_text_head([[4]], [7], V), 2, is_guided=False)
    assert ids == [126089, SOI, 126353, EOI, BOS, 7, M, M]
    assert positions == list(range(8))
    assert layout.conditional_start == layout.unconditional_stop == 0


@pytest.mark.parametrize("parity", cv.Parity)
def test_text_to_image_leaves_out_padding_and_keeps_its_positions(parity) -> None:
    """Both streams' text is flush right in a block of 6, so that the image starts at 7 in both."""
    head = tp.text_to_image_head([11, 12], V, text_block=6)
    _, ids, positions = laid_out(head, 2, parity)
    second = [126088, BOS, EOS, SOI, M, M, EOI]
    assert ids == [*second, P, 126088, BOS, 11, 12, EOS, SOI, M, M, EOI]
    assert positions == [3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_image_to_image_empties_the_instruction() -> None:
    head = tp.image_to_image_head([[0, 1]], [11, 12], V, text_block=5)
    _, ids, positions = laid_out(head, [M, 126350])
    source = [126095, SOI, 126349, 126350, EOI]
    assert ids == [
        *source, BOS, EOS, SOI, M, 126350, EOI, P, P, P, P, P,
        *source, BOS, 11, 12, EOS, SOI, M, 126350, EOI,
    ]  # fmt: skip
    assert positions == [
        0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 0, 0, 0, 0, 0,
        0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13,
    ]  # fmt: skip


def test_image_to_image_reference_keeps_the_instruction_of_the_conditional_stream() -> None:
    """337 ids are kept of the empty prompt: here all of it, so only hidden rows differ."""
    head = tp.image_to_image_head([[0]], [11], V, text_block=4)
    _, ids, positions = laid_out(head, 1, cv.Parity.REFERENCE)
    source = [126095, SOI, 126349, EOI]
    assert ids[:8] == [*source, BOS, EOS, SOI, M]
    assert positions[:8] == [0, 1, 2, 3, 6, 7, 8, 9]


def test_text_to_speech_keeps_the_text_and_hides_the_speech() -> None:
    head = tp.text_to_speech_head([11], V, text_block=6)
    _, ids, positions = laid_out(head, [134541, M, M])
    stream = [126099, BOS, 11, EOS, SOA, 134541, M, M]
    assert ids == stream * 2  # 8 rows: no padding between the streams
    assert positions == [2, 3, 4, 5, 6, 7, 8, 9] * 2


def test_mixed_answer() -> None:
    head = tp.text_image_to_text_image_head([[0]], [11], V, text_block=4)
    _, ids, positions = laid_out(head, 2, text_targets=2)
    source, answer = [126103, SOI, 126349, EOI], [M, M, EOI, BOS, M, M]
    assert ids == [
        *source, BOS, EOS, SOI, *answer, P, P, P,
        *source, BOS, 11, EOS, SOI, *answer,
    ]  # fmt: skip
    assert positions == [
        0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0, 0, 0,
        0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
    ]  # fmt: skip


def test_own_unconditional_prompt_has_its_own_positions() -> None:
    _, ids, positions = laid_out((BOS, 7, 8, 9), 2, unconditional_head=(BOS, 5))
    assert ids == [BOS, 5, M, M, P, P, P, P, BOS, 7, 8, 9, M, M]
    assert positions == [0, 1, 2, 3, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5]
