"""Questions of an evaluation: held out, right answers, decoded as asked."""

from __future__ import annotations

import shutil

import msgspec
import numpy as np
import pytest

from vllm_dynin.canvas import Task
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.training_ext.evaluate.figures import HEADLINE
from vllm_dynin.training_ext.evaluate.questions import (
    DRAWN_VOICE,
    GUIDED,
    UNGUIDED,
    USUAL_VOICE,
    Settings,
    ask,
)
from vllm_dynin.training_ext.tiny import decoding, digits
from vllm_dynin.training_ext.tiny.words import DIGIT_WORDS, is_list_held_out, is_utterance_held_out

WRITTEN = [task for task in HEADLINE if task not in (Task.SPEECH_TO_TEXT, Task.TEXT_TO_SPEECH)]


@pytest.mark.parametrize("task", WRITTEN)
def test_a_seed_gives_the_same_questions_and_another_one_others(task) -> None:
    def asked(seed):
        return [(q.asked, q.expected, q.request.seed) for q in ask(task, 12, seed, Settings())]

    assert asked(3) == asked(3)
    assert asked(3) != asked(4)
    assert not {seed for *_, seed in asked(3)} & {seed for *_, seed in asked(4)}


def test_lists_are_held_out_and_answered_right() -> None:
    for question in ask(Task.TEXT_TO_TEXT, 30, 0, Settings()):
        given = question.plain.split()
        assert is_list_held_out([DIGIT_WORDS.index(word) for word in given])
        prompt, answer = question.asked.lower(), question.expected.split()
        if (
            ("order:" in prompt and "reverse" not in prompt)
            or "sort" in prompt
            or "small" in prompt
        ):
            assert answer == sorted(given, key=DIGIT_WORDS.index)
        elif "reverse" in prompt or "backwards" in prompt:
            assert answer == given[::-1]
        else:
            assert answer == given


def test_pictures_are_of_the_test_split() -> None:
    known = {np.asarray(digits.image(index)).tobytes() for index in digits.test_indices()}
    trained = {np.asarray(digits.image(index)).tobytes() for index in range(digits.num_train())}
    for task in (Task.IMAGE_TO_TEXT, Task.IMAGE_TO_IMAGE):
        shown = [np.asarray(q.pictures[0]).tobytes() for q in ask(task, 400, 0, Settings())]
        assert set(shown) <= known - trained
        assert len(set(shown)) == digits.NUM_TEST  # each once, and no more than there are


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
def test_recordings_are_of_unseen_sequences_in_two_voices() -> None:
    found = ask(Task.SPEECH_TO_TEXT, 6, 0, Settings())
    assert [q.variant for q in found] == [USUAL_VOICE] * 6 + [DRAWN_VOICE] * 6
    said = [tuple(DIGIT_WORDS.index(word) for word in q.expected.split()) for q in found]
    assert said[:6] == said[6:] and len(set(said)) == 6
    assert all(map(is_utterance_held_out, said))
    assert sorted(map(len, said[:6])) == [2, 2, 3, 3, 4, 4]
    usual, drawn = found[5].sound, found[11].sound
    assert len(usual) > 8_000 and (len(usual) != len(drawn) or not np.array_equal(usual, drawn))
    spoken = ask(Task.TEXT_TO_SPEECH, 3, 1, Settings())
    assert [q.asked for q in spoken] == [q.expected for q in spoken]


def test_clips_are_answered_with_their_direction() -> None:
    for question in ask(Task.VIDEO_TO_TEXT, 8, 0, Settings()):
        first, last = (np.asarray(question.pictures[i]).max(axis=2) for i in (2, -3))
        rows, columns = (
            np.average(np.arange(len(first)), weights=last.sum(axis=axis) + 1e-9)
            - np.average(np.arange(len(first)), weights=first.sum(axis=axis) + 1e-9)
            for axis in (1, 0)
        )
        if abs(rows) > abs(columns):
            moved = "down" if rows > 0 else "up"
        else:
            moved = "right" if columns > 0 else "left"
        assert question.expected.endswith(f" moving {moved}")


def test_edits_are_undone_by_the_same_edit() -> None:
    """Each of the three edits is its own inverse."""
    edits = {"invert": "invert", "black": "invert", "mirror": "mirror", "left": "mirror"}
    for question in ask(Task.IMAGE_TO_IMAGE, 9, 0, Settings()):
        edit = next((e for word, e in edits.items() if word in question.asked), "turn")
        undone = digits.edited(question.target, edit)
        assert np.array_equal(np.asarray(undone), np.asarray(question.pictures[0]))
        assert not np.array_equal(np.asarray(question.target), np.asarray(undone))


def test_images_are_asked_for_with_and_without_guidance() -> None:
    options = {Task.TEXT_TO_IMAGE: DenoiseParams(steps=4, guidance_scale=2.0)}
    both = ask(Task.TEXT_TO_IMAGE, 10, 0, Settings(options=options))
    assert [q.variant for q in both] == [GUIDED] * 10 + [UNGUIDED] * 10
    assert {q.request.options for q in both[:10]} == {DenoiseParams(steps=4, guidance_scale=2.0)}
    assert {q.request.options for q in both[10:]} == {DenoiseParams(steps=4, guidance_scale=0.0)}
    assert sorted(q.expected for q in both[:10]) == sorted(DIGIT_WORDS)
    only = ask(Task.TEXT_TO_IMAGE, 10, 0, Settings(with_unguided=False))
    assert len(only) == 10


def test_decoding_is_the_tuned_one_unless_told_otherwise() -> None:
    task = Task.TEXT_TO_SPEECH
    tuned = decoding.DECODING[task].options()
    assert tuned.guidance_scale is not None and tuned.block_length is not None
    given = {task: DenoiseParams(block_length=5)}
    assert Settings().decoding(task) == tuned
    changed = Settings(options=given).decoding(task)
    assert changed == msgspec.structs.replace(tuned, block_length=5)
    assert Settings(options=given, is_tuned=False).decoding(task) == given[task]
    renamed = Settings(options={task: DenoiseParams(cfg_scale=1.0)}).decoding(task)
    assert (renamed.cfg_scale, renamed.guidance_scale) == (1.0, None)
    (drawn,) = ask(Task.TEXT_TO_IMAGE, 1, 0, Settings(with_unguided=False))
    assert drawn.request.temperature == decoding.DECODING[Task.TEXT_TO_IMAGE].temperature > 0
    (edited,) = ask(Task.IMAGE_TO_IMAGE, 1, 0, Settings())
    assert edited.request.temperature == 0
    (edited,) = ask(Task.IMAGE_TO_IMAGE, 1, 0, Settings(is_tuned=False))
    assert edited.request.temperature is None
    (spoken,) = ask(Task.TEXT_TO_SPEECH, 1, 0, Settings())
    assert spoken.request.max_tokens == decoding.DECODING[task].max_tokens
    (spoken,) = ask(Task.TEXT_TO_SPEECH, 1, 0, Settings(is_tuned=False))
    assert spoken.request.max_tokens is None


@pytest.mark.parametrize(("task", "count"), [(Task.SPEECH_TO_SPEECH, 4), (Task.TEXT_TO_TEXT, 0)])
def test_what_is_not_measured_is_refused(task, count) -> None:
    with pytest.raises(ValueError, match="ask at least one of t2t"):
        ask(task, count, 0, Settings())
