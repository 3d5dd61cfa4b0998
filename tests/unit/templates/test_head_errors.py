"""Heads from clients: the task is recognised, and what cannot be served is refused."""

import pytest

from vllm_dynin import canvas as cv
from vllm_dynin.processors import templates as tp
from vllm_dynin.tokens import DYNIN_OMNI, Vocabulary

V = DYNIN_OMNI
T2I = tp.text_to_image_head([7], V)
T2S = tp.text_to_speech_head([7], V)


def build(head, targets=4, vocabulary=V, **options):
    return tp.from_head(head, targets, vocabulary=vocabulary, num_rows=138752, **options)


@pytest.mark.parametrize(
    ("head", "task"),
    [
        ((), "t2t"),
        ((126080, 7), "t2t"),
        ((126093, 126093), "t2t"),
        ((126089, 7), "mmu"),
        ((126096, 7), "s2t"),
        ((126100, 7), "v2t"),
        (T2I, "t2i"),
        ((126088, 126084, 126349, 126085, 126084), "i2i"),
        ((126095, 7), "i2i"),
        (T2S, "t2s"),
        ((126101, 7), "s2s"),
        ((126102, 7), "v2s"),
        ((126103, 7), "ti2ti"),
        ((7, 126088), "t2t"),
    ],
)
def test_task_is_inferred(head, task) -> None:
    assert tp.infer_task(head, V) == task


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build((126090, 7)), r"task token <\|t2v\|> \(id 126090\)"),
        (
            lambda: build(T2I, task=cv.Task.TEXT_TO_TEXT),
            "task token says t2i, the request says t2t",
        ),
        (lambda: build((7,), task=cv.Task.TEXT_TO_IMAGE), "says t2t, the request says t2i"),
        (
            lambda: build(T2I[:-1]),
            r"ends with id 126081, but must end with <\|soi\|> \(id 126084\)",
        ),
        (lambda: build(T2S[:-1]), r"must end with <\|soa\|>"),
        (lambda: build((7, 138752)), "id 138752 at index 1 of the prompt"),
        (lambda: build((7, -1)), "id -1 at index 1"),
        (
            lambda: build((7, 126336)),
            r"control token <\|mdm_mask\|> \(id \d+\) at index 1, which stands",
        ),
        (lambda: build((7,), 0), "0 slots to generate"),
        (lambda: build((7,), [5, 6]), "no target"),
        (lambda: build((7,), []), "region 0..0"),
        (lambda: build((7,), [126336, 130000]), "known id 130000 at target 1"),
        (lambda: build(T2I, [126336, 5]), "known id 5 at target 1"),
        (lambda: build(T2S, [126336, 126349]), "known id 126349 at target 1"),
        (lambda: build((7,), text_targets=3), "text_targets=3 with task t2t"),
        (
            lambda: build((126103, 126084, 126349, 126085, 126084)),
            "text_targets=None with task ti2ti",
        ),
        (lambda: build((126095, 126349, 5, 126084), is_guided=True), "hence no source image"),
        # media: missing, wrong for the task, or announced and not sent
        (lambda: build((126095, 5, 126084)), "i2i prompt has no image codes"),
        (lambda: build((126089, 126080, 7)), "mmu prompt has no image codes"),
        (lambda: build((126100, 126080, 7)), "v2t prompt has no image codes"),
        (lambda: build((126096, 7)), "s2t prompt has no speech units"),
        (lambda: build((126101, 126084, 126349, 126085, 126097)), "s2s prompt has no speech"),
        (lambda: build((7, 126084, 126349, 126085)), "t2t prompt holds image codes"),
        (lambda: build((126096, 126349, 134541)), "s2t prompt holds image codes"),
        (lambda: build((126099, 134541, 126097)), "task takes nothing but text"),
        (lambda: build((126095, 126349, 134541, 126084)), "the task takes image;"),
        (
            lambda: build((126089, 126084, 126085, 7)),
            "at index 1, a place for image, and no image input",
        ),
        (
            lambda: build((126100, 126086, 126087, 7)),
            "at index 1, a place for video, and no video input",
        ),
        (
            lambda: build((126096, 126097, 126098, 7)),
            "at index 1, a place for audio, and no audio input",
        ),
        (lambda: build((126088, 126084), is_guided=True), "2 short of an empty one"),
        (
            lambda: build(T2I, is_guided=True, unconditional_head=T2S),
            "task token says t2s, the request says t2i",
        ),
        (
            lambda: build((7,), is_guided=True, unconditional_head=(126336,)),
            "the prompt to guide away from has the control token",
        ),
        (
            lambda: build((7,), is_guided=True, unconditional_head=(138752,)),
            "of the unconditional prompt",
        ),
        (
            lambda: build(
                T2I,
                is_guided=True,
                parity=cv.Parity.REFERENCE,
                unconditional_head=(126088, 126080, 126081, 126084),
            ),
            "has 4 ids, the conditional one 130",
        ),
    ],
)
def test_bad_heads_are_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_checkpoint_without_a_modality_refuses_its_directions() -> None:
    llada = Vocabulary(num_image_codes=0, num_speech_units=0)
    with pytest.raises(ValueError, match="has no image codes"):
        build(T2I, vocabulary=llada)
    with pytest.raises(ValueError, match="has no speech codes"):
        build(T2S, vocabulary=llada)
    assert build((7,), vocabulary=llada).task == "t2t"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tp.text_to_image_head(range(127), V), "takes 130 tokens .* holds 129"),
        (lambda: tp.image_to_image_head([], [7], V), "needs a source image"),
        (lambda: tp.image_to_image_head([[8192]], [7], V), "image code 8192"),
        (lambda: tp.image_to_text_head([], [7], V), "without an image"),
        (lambda: tp.image_to_text_head([[]], [7], V), "an image without codes"),
        (lambda: tp.video_to_text_head([], [7], V), "an image without codes"),
        (lambda: tp.speech_to_text_head([], [7], V), "speech without codes"),
        (lambda: tp.speech_to_text_head([4096], [7], V), "speech unit 4096"),
        (lambda: tp.video_to_speech_head([[0]], range(127), V), "takes 129 tokens .* holds 128"),
    ],
)
def test_bad_parts_are_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_longest_texts_that_fit() -> None:
    assert tp.text_to_image_head(range(126), V)[0] == V.t2i
    assert len(tp.video_to_speech_head([[0]], range(126), V)) == 4 + 128 + 1


def test_an_unpadded_head_is_served_with_its_own_positions() -> None:
    canvas = build((126088, 126080, 7, 126081, 126084), is_guided=True)
    assert canvas.conditional.positions == (0, 1, 2, 3, 4)
    assert canvas.unconditional.stream.positions == (1, 2, 3, 4)
    assert canvas.unconditional.stream.canvas_start == canvas.conditional.canvas_start == 5
