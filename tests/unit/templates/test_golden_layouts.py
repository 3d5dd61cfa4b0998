"""Every direction's layout written out with the ids of the published vocabulary.

Ids on purpose as numbers: 126080 BOS, 126081 EOS, 126084 soi, 126085 eoi, 126093 PAD,
126097 soa, 126098 eoa, 126336 mask; image code c is 126349 + c, speech unit u is 134541 + u.
"""

import pytest

from vllm_dynin import canvas as cv
from vllm_dynin.processors import templates as tp
from vllm_dynin.tokens import DYNIN_OMNI

M = 126336
ROWS = 138752
TEXT = (((0, 126349),), (126336,))
TEXT_REFERENCE = (((0, 138752),), ())
IMAGE = (((126349, 134541),), ())
SPEECH = (((134541, 138637), (126098, 126099), (126081, 126082)), ())

BOTH = [cv.Parity.DEFAULT, cv.Parity.REFERENCE]


def build(head, targets, parity=cv.Parity.DEFAULT, **options):
    return tp.from_head(
        head, targets, vocabulary=DYNIN_OMNI, num_rows=ROWS, parity=parity, **options
    )


def rows(stream):
    return list(zip(stream.positions, stream.ids, strict=True))


def regions(canvas):
    return [(r.start, r.stop, str(r.decoder), (r.columns, r.excluded)) for r in canvas.regions]


@pytest.mark.parametrize(
    ("head", "expected", "task"),
    [
        (tp.text_head([7, 8], DYNIN_OMNI), (126080, 7, 8), "t2t"),
        (tp.text_head([7, 8], DYNIN_OMNI, has_bos=False), (7, 8), "t2t"),
        (
            tp.image_to_text_head([[0, 3]], [7], DYNIN_OMNI),
            (126089, 126084, 126349, 126352, 126085, 126080, 7),
            "mmu",
        ),
        (
            tp.image_to_text_head([[0], [8191]], [7], DYNIN_OMNI),
            (126089, 126084, 126349, 126085, 126084, 134540, 126085, 126080, 7),
            "mmu",
        ),
        (
            tp.video_to_text_head([[0, 1], [2, 3]], [7], DYNIN_OMNI),
            (126100, 126084, 126349, 126350, 126351, 126352, 126085, 126080, 7),
            "v2t",
        ),
        (
            tp.speech_to_text_head([5, 7], [7], DYNIN_OMNI),
            (126096, 126097, 134546, 134548, 126098, 7),
            "s2t",
        ),
    ],
)
def test_text_answers(head, expected, task) -> None:
    assert head == expected
    for parity, columns in zip(BOTH, [TEXT, TEXT_REFERENCE], strict=True):
        canvas = build(head, 3, parity, is_guided=True)
        assert canvas.task == task
        assert canvas.conditional == cv.Stream.contiguous(expected)
        assert canvas.slots == (M, M, M)
        assert regions(canvas) == [(0, 3, "block", columns)]
        assert canvas.unconditional == cv.Unconditional(
            stream=cv.Stream.contiguous((M,) * len(expected)),
            follows=(True, True, True),
            form=cv.GuidanceForm.DELTA,
        )


def test_text_guidance_hides_infilled_text_too() -> None:
    canvas = build(tp.text_head([7], DYNIN_OMNI), [M, 9, M], is_guided=True)
    assert canvas.slots == (M, 9, M)
    assert canvas.unconditional.follows == (True, False, True)
    assert canvas.unconditional_slots((5, 9, M)) == (5, M, M)


@pytest.mark.parametrize("parity", BOTH)
def test_text_to_image(parity) -> None:
    head = tp.text_to_image_head([11, 12], DYNIN_OMNI, text_block=8)
    pad = 126093
    assert head == (pad, pad, pad, 126088, 126080, 11, 12, 126081, 126084)
    canvas = build(head, 4, parity, is_guided=True)
    assert canvas.task == "t2i"
    assert rows(canvas.conditional) == [
        (3, 126088),
        (4, 126080),
        (5, 11),
        (6, 12),
        (7, 126081),
        (8, 126084),
    ]
    assert canvas.conditional.canvas_start == 9
    assert canvas.slots == (M, M, M, M, 126085)
    assert regions(canvas) == [(0, 4, "maskgit", IMAGE)]
    second = canvas.unconditional
    assert rows(second.stream) == [(5, 126088), (6, 126080), (7, 126081), (8, 126084)]
    assert second.stream.canvas_start == 9
    assert second.form == "weighted"
    # Reference: 513 - 9 > 4, so no code is ever shown to the second stream.
    hidden = parity is cv.Parity.REFERENCE
    assert second.follows == ((False,) * 4 if hidden else (True,) * 4) + (True,)


def test_image_to_image_default() -> None:
    head = tp.image_to_image_head([[0, 1]], [11, 12], DYNIN_OMNI, text_block=6)
    pad = 126093
    assert head == (
        *(126095, 126084, 126349, 126350, 126085),
        *(pad, pad, 126080, 11, 12, 126081),
        126084,
    )
    canvas = build(head, 2, is_guided=True)
    assert canvas.task == "i2i"
    source = [(0, 126095), (1, 126084), (2, 126349), (3, 126350), (4, 126085)]
    assert rows(canvas.conditional) == [
        *source,
        (7, 126080),
        (8, 11),
        (9, 12),
        (10, 126081),
        (11, 126084),
    ]
    assert (canvas.conditional.canvas_start, canvas.slots) == (12, (M, M, 126085))
    assert regions(canvas) == [(0, 2, "maskgit", IMAGE)]
    second = canvas.unconditional
    assert rows(second.stream) == [*source, (9, 126080), (10, 126081), (11, 126084)]
    assert (second.stream.canvas_start, second.follows) == (12, (True, True, True))


def test_image_to_image_alternative() -> None:
    head = tp.image_to_image_alternative_head([[0]], [11], DYNIN_OMNI, text_block=5)
    pad = 126093
    assert head == (
        *(126088, 126084, 126349, 126085, 126080),
        *(pad, pad, 126080, 11, 126081),
        *(126081, 126084),
    )
    canvas = build(head, 1, is_guided=True)
    assert canvas.task == "i2i"
    before = [(0, 126088), (1, 126084), (2, 126349), (3, 126085), (4, 126080)]
    after = [(9, 126081), (10, 126081), (11, 126084)]
    assert rows(canvas.conditional) == [*before, (7, 126080), (8, 11), *after]
    assert rows(canvas.unconditional.stream) == [*before, (8, 126080), *after]


def test_text_image_to_text_image() -> None:
    head = tp.text_image_to_text_image_head([[0]], [11], DYNIN_OMNI, text_block=4)
    pad = 126093
    assert head == (126103, 126084, 126349, 126085, pad, 126080, 11, 126081, 126084)
    canvas = build(head, 2, text_targets=3, is_guided=True)
    assert canvas.task == "ti2ti"
    before = [(0, 126103), (1, 126084), (2, 126349), (3, 126085)]
    assert rows(canvas.conditional) == [*before, (5, 126080), (6, 11), (7, 126081), (8, 126084)]
    assert canvas.slots == (M, M, 126085, 126080, M, M, M)
    assert regions(canvas) == [(0, 2, "maskgit", IMAGE), (4, 7, "block", TEXT)]
    second = canvas.unconditional
    assert rows(second.stream) == [*before, (6, 126080), (7, 126081), (8, 126084)]
    assert (second.form, set(second.follows)) == ("delta", {True})

    reference = build(head, 2, cv.Parity.REFERENCE, text_targets=3, is_guided=True)
    assert reference.slots == (M, M, 126085, 126080, M, M, M, 126081)
    assert regions(reference)[1] == (4, 7, "block", (((0, 126349),), ()))
    assert set(reference.unconditional.follows) == {True}


@pytest.mark.parametrize("parity", BOTH)
def test_text_to_speech(parity) -> None:
    head = tp.text_to_speech_head([11, 12], DYNIN_OMNI, text_block=7)
    pad = 126093
    assert head == (pad, pad, 126099, 126080, 11, 12, 126081, 126097)
    canvas = build(head, 3, parity, is_guided=True)
    assert canvas.task == "t2s"
    expected = [(2, 126099), (3, 126080), (4, 11), (5, 12), (6, 126081), (7, 126097)]
    assert rows(canvas.conditional) == expected
    assert (canvas.conditional.canvas_start, canvas.slots) == (8, (M, M, M))
    assert regions(canvas) == [(0, 3, "speech", SPEECH)]
    second = canvas.unconditional
    assert (second.stream, second.follows) == (canvas.conditional, (False,) * 3)
    assert second.form == "delta"
    assert canvas.is_unconditional_constant


@pytest.mark.parametrize("parity", BOTH)
def test_speech_to_speech(parity) -> None:
    head = tp.speech_to_speech_head(
        [0, 4095],
        DYNIN_OMNI,
        user_header_ids=[11, 12],
        assistant_turn_ids=[13, 14],
        images=[[5]],
    )
    assert head == (
        *(126101, 11, 12, 126084, 126354, 126085),
        *(126097, 134541, 138636, 126098, 13, 14, 126097),
    )
    canvas = build(head, [M, 134550, M], parity, is_guided=True)
    assert canvas.task == "s2s"
    assert canvas.conditional == cv.Stream.contiguous(head)
    assert regions(canvas) == [(0, 3, "speech", SPEECH)]
    # Known units are part of the prompt: the second stream sees them, and still never changes.
    assert canvas.unconditional.follows == (False, True, False)
    assert canvas.is_unconditional_constant


@pytest.mark.parametrize("parity", BOTH)
def test_video_to_speech_shows_its_filler(parity) -> None:
    head = tp.video_to_speech_head([[0], [1]], [11], DYNIN_OMNI, text_block=5)
    assert head == (
        *(126102, 126084, 126349, 126350, 126085),
        *(126080, 11, 126081, 126081, 126081),
        126097,
    )
    canvas = build(head, 255, parity)
    assert canvas.task == "v2s"
    assert canvas.conditional == cv.Stream.contiguous(head)
    assert canvas.unconditional is None
    assert regions(canvas) == [(0, 255, "speech", SPEECH)]


def test_batch_padding_of_transcription_is_visible_in_reference_only() -> None:
    pad = 126093
    head = (pad, pad, *tp.speech_to_text_head([5], [7], DYNIN_OMNI))
    shown = build(head, 2, cv.Parity.REFERENCE).conditional
    assert shown == cv.Stream.contiguous(head)
    hidden = build(head, 2).conditional
    assert rows(hidden) == [(2, 126096), (3, 126097), (4, 134546), (5, 126098), (6, 7)]
    assert hidden.canvas_start == 7


def test_infilled_image_keeps_known_codes() -> None:
    head = tp.text_to_image_head([11], DYNIN_OMNI, text_block=8)
    canvas = build(head, [126349, M, 134540, M], is_guided=True)
    assert canvas.slots == (126349, M, 134540, M, 126085)
    assert (canvas.num_targets, canvas.regions[0].num_slots) == (2, 4)
    assert canvas.unconditional.follows == (True,) * 5


def test_infilled_mixed_answer_may_be_complete_in_one_part() -> None:
    head = tp.text_image_to_text_image_head([[0]], [11], DYNIN_OMNI, text_block=4)
    canvas = build(head, [126349, 126350], text_targets=2)
    assert regions(canvas) == [(4, 6, "block", TEXT)]


@pytest.mark.parametrize("parity", BOTH)
def test_own_unconditional_prompt(parity) -> None:
    speech = tp.text_to_speech_head([11, 12], DYNIN_OMNI, text_block=8)
    empty = tp.text_to_speech_head([], DYNIN_OMNI, text_block=8)
    second = build(speech, 3, parity, is_guided=True, unconditional_head=empty).unconditional
    assert rows(second.stream) == [(5, 126099), (6, 126080), (7, 126081), (8, 126097)]
    assert second.follows == (True,) * 3

    second = build((5, 6, 7), 2, parity, is_guided=True, unconditional_head=(9,)).unconditional
    assert (second.stream, second.follows) == (cv.Stream.contiguous((9,)), (True, True))

    image = tp.text_to_image_head([11, 12], DYNIN_OMNI, text_block=8)
    negative = tp.text_to_image_head([13], DYNIN_OMNI, text_block=8)
    second = build(image, 2, parity, is_guided=True, unconditional_head=negative).unconditional
    assert second.stream.ids == (126088, 126080, 13, 126081, 126084)
    assert second.follows == (parity is cv.Parity.DEFAULT,) * 2 + (True,)
