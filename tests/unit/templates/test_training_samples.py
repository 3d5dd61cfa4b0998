"""Training samples: the original's layouts, the EOS policies, and no drift from serving."""

import pytest

from vllm_dynin import canvas as cv
from vllm_dynin.processors import templates as tp
from vllm_dynin.tokens import DYNIN_OMNI

V = DYNIN_OMNI
PAD, BOS, EOS, HEADER = 126093, 126080, 126081, 126347
SOA, EOA, IGNORE = 126097, 126098, -100
REFERENCE = cv.Parity.REFERENCE


def sample(head, target, parity=REFERENCE, **options):
    return tp.build_sample(head, target, vocabulary=V, num_rows=138752, parity=parity, **options)


def units(*values):
    return [134541 + value for value in values]


def targets(made):
    return [token for token, target in zip(made.ids, made.is_target, strict=True) if target]


def labelled(made):
    return [label for label in made.labels if label != IGNORE]


def test_speech_to_text_of_the_original() -> None:
    text = [BOS, 10, HEADER, 13]
    start = tp.answer_start(text, V)
    head = tp.speech_to_text_training_head([300, 301], text[1:start], V, audio_block=7)
    made = sample(head, text[start:], num_targets=6)
    eos = [EOS] * 5
    expected = [PAD, PAD, 126096, SOA, *units(300, 301), EOA, BOS, 10, HEADER, 13, *eos]
    assert list(made.ids) == expected
    assert targets(made) == [13, *eos]
    assert list(made.labels) == [IGNORE] * 10 + [13, *eos]
    assert made.region_length == 6
    assert all(made.is_visible)


def test_speech_to_text_of_the_original_drops_the_tail_of_long_audio() -> None:
    head = tp.speech_to_text_training_head(range(9), [10], V, audio_block=7)
    assert list(head) == [126096, SOA, *units(0, 1, 2, 3), EOA, BOS, 10]


def test_text_to_speech_of_the_original() -> None:
    head = tp.text_to_speech_head([10], V, text_block=9)
    made = sample(head, units(300, 301), num_targets=5)
    answer = [*units(300, 301), EOA, EOS, EOS]
    assert list(made.ids) == [*[PAD] * 5, 126099, BOS, 10, EOS, SOA, *answer]
    assert targets(made) == labelled(made) == answer
    assert list(made.is_visible) == [False] * 5 + [True] * 10


def test_text_to_speech_with_visible_filler() -> None:
    head = tp.text_to_speech_head([10], V, text_block=9)
    made = sample(head, units(300, 301), num_targets=5, filler="visible")
    assert targets(made) == labelled(made) == [*units(300, 301), EOA]
    assert made.ids[-2:] == (EOS, EOS)
    assert made.labels[-2:] == (IGNORE, IGNORE)


def test_speech_too_long_ends_in_end_of_audio() -> None:
    head = tp.text_to_speech_head([10], V, text_block=9)
    made = sample(head, units(*range(300, 307)), num_targets=5)
    assert targets(made) == [*units(300, 301, 302, 303), EOA]


def test_video_to_text_of_the_original() -> None:
    head = tp.video_to_text_head([[200], [201]], [], V)
    text = [BOS, 10, 11]
    made = sample(head, text[tp.answer_start(text, V) :], num_targets=8, eos_policy="first")
    assert list(made.ids) == [126100, 126084, 126549, 126550, 126085, *text, *[EOS] * 5]
    assert list(made.labels) == [IGNORE] * 5 + [BOS, 10, 11, EOS] + [IGNORE] * 4
    assert made.region_length == 8


def test_target_of_a_dialogue_cut_before_its_second_header_is_the_question() -> None:
    whole = [BOS, 126346, 10, HEADER, 11, 126346, 12, HEADER, 13]
    assert tp.answer_start(whole, V) == 8
    assert tp.answer_start(whole[:6], V) == 4
    assert tp.answer_start([BOS, 10], V) == 0


def test_text_to_image_of_the_original() -> None:
    head = tp.text_to_image_head([10, 11], V, text_block=8)
    image = [126349 + code for code in (5, 6)]
    made = sample(head, image)
    assert list(made.ids) == [
        *[PAD] * 3,
        *(126088, BOS, 10, 11, EOS, 126084),
        *image,
        126085,
    ]
    assert list(made.is_visible) == [False] * 3 + [True] * 9
    assert targets(made) == labelled(made) == image
    dropped = tp.text_to_image_head([], V, text_block=8)
    assert list(dropped) == [*[PAD] * 5, 126088, BOS, EOS, 126084]


def test_text_to_text_of_the_original() -> None:
    text = [BOS, 10, HEADER, 13]
    everything = sample([], text, num_targets=8, task=cv.Task.TEXT_TO_TEXT)
    assert targets(everything) == [*text, *[EOS] * 4]
    start = tp.answer_start(text, V)
    answer = sample(text[:start], text[start:], num_targets=5)
    assert answer.ids == everything.ids
    assert targets(answer) == [13, *[EOS] * 4]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("all", [7, EOS, EOS, EOS]),
        ("first", [7, EOS, IGNORE, IGNORE]),
        ("none", [7, IGNORE, IGNORE, IGNORE]),
    ],
)
def test_eos_policies(policy, expected) -> None:
    made = sample([BOS, 5], [7], num_targets=4, eos_policy=policy)
    assert list(made.labels) == [IGNORE, IGNORE, *expected]
    assert made.region_length == 4


def test_end_of_audio_is_labelled_under_every_policy() -> None:
    head = tp.text_to_speech_head([10], V, text_block=9)
    for policy, expected in [("all", [EOA, EOS]), ("first", [EOA, EOS]), ("none", [EOA])]:
        made = sample(head, [], num_targets=2, eos_policy=policy)
        assert labelled(made) == expected


def test_answer_takes_its_ending_when_no_length_is_given() -> None:
    assert targets(sample([BOS, 5], [7, 8])) == [7, 8, EOS]
    assert targets(sample([BOS, 5], [7, 8, 9], num_targets=2)) == [7, EOS]


def test_mixed_answer() -> None:
    head = tp.text_image_to_text_image_head([[0]], [11], V, text_block=4)
    image = [126349, 126350]
    made = sample(head, image, text_ids=[9], num_text_targets=3, parity=cv.Parity.DEFAULT)
    assert list(made.ids[len(head) :]) == [*image, 126085, BOS, 9, EOS, EOS]
    assert targets(made) == [*image, 9, EOS, EOS]


HEADS = {
    "t2t": (tp.text_head([7, 8], V), [9], None),
    "mmu": (tp.image_to_text_head([[0, 3]], [7], V), [9], None),
    "v2t": (tp.video_to_text_head([[0], [3]], [7], V), [9], None),
    "s2t": (tp.speech_to_text_head([5], [7], V), [9], None),
    "t2i": (tp.text_to_image_head([7], V), [126349, 126350], None),
    "i2i": (tp.image_to_image_head([[1, 2]], [7], V), [126349, 126350], None),
    "ti2ti": (tp.text_image_to_text_image_head([[1]], [7], V), [126349, 126350], [9]),
    "t2s": (tp.text_to_speech_head([7], V), units(4, 5), None),
    "s2s": (
        tp.speech_to_speech_head([1], V, user_header_ids=[7], assistant_turn_ids=[8]),
        units(4),
        None,
    ),
    "v2s": (tp.video_to_speech_head([[0]], [7], V), units(4), None),
}


@pytest.mark.parametrize("parity", list(cv.Parity))
@pytest.mark.parametrize("task", list(cv.Task))
def test_training_sequence_is_the_serving_canvas(task, parity) -> None:
    head, answer, text = HEADS[task]
    made = sample(head, answer, parity, text_ids=text)
    num_text = None if text is None else len(text) + 1
    num_targets = made.region_length - (num_text or 0)
    canvas = tp.from_head(
        head,
        num_targets,
        vocabulary=V,
        num_rows=138752,
        parity=parity,
        text_targets=num_text,
    )
    assert canvas.task == made.task == task
    pairs = list(zip(made.ids, made.is_target, made.is_visible, strict=True))
    shown = [
        (i, V.mask if target else token) for i, (token, target, seen) in enumerate(pairs) if seen
    ]
    start = canvas.conditional.canvas_start
    served = list(zip(canvas.conditional.positions, canvas.conditional.ids, strict=True))
    served += [(start + i, token) for i, token in enumerate(canvas.slots)]
    assert shown == served


@pytest.mark.parametrize(
    ("head", "target", "options", "message"),
    [
        ([BOS], [7, V.mask], {}, "target id 126336 at index 1"),
        (tp.text_to_image_head([7], V), [126349], {"num_targets": 4}, "1 image codes for 4 slots"),
        (tp.text_to_image_head([7], V), [5], {}, "target id 5 at index 0"),
        ([BOS], [7], {"num_targets": 0}, "num_targets=0"),
        ([BOS], [7], {"text_ids": [5]}, "part of ti2ti"),
    ],
)
def test_bad_samples_are_refused(head, target, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        sample(head, target, cv.Parity.DEFAULT, **options)
