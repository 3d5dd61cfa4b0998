"""Ids of an answer → text, image codes, speech units; and where an answer does not fit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vllm_dynin.canvas import Task
from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.outputs import ImagePiece, SpeechPiece, TextPiece, answer_pieces, output_pieces
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.tokens import NUM_CONTROL_TOKENS

CONFIG = DyninOmniConfig(
    text_vocab_size=256 + NUM_CONTROL_TOKENS,
    codebook_size=16,
    speech_codebook_size=12,
    image_patch=8,
    generation_resolution=16,
    edit_resolution=24,
)
V = CONFIG.vocabulary


def decode_text(ids):
    return "".join(chr(token) for token in ids if token not in V.control)


def pieces(task, ids, **options):
    text = options.pop("text", None)
    return answer_pieces(
        ids,
        task=task,
        options=DenoiseParams(**options),
        config=CONFIG,
        decode_text=decode_text,
        text=text,
        seed=5,
    )


def image(*codes):
    return [V.image.start + code for code in codes]


def speech(*units):
    return [V.speech.start + unit for unit in units]


def test_text_is_what_vllm_decoded() -> None:
    """It has cut at `stop` strings, which the ids still hold."""
    assert pieces(Task.TEXT_TO_TEXT, [65, 66], text="A") == [TextPiece("A")]
    assert pieces(Task.TEXT_TO_TEXT, [65, 66, V.eos]) == [TextPiece("AB")]


@pytest.mark.parametrize(
    ("task", "count", "size"), [(Task.TEXT_TO_IMAGE, 4, 16), (Task.IMAGE_TO_IMAGE, 9, 24)]
)
def test_image_of_the_task_default_size(task, count, size) -> None:
    codes = tuple(range(count))
    assert pieces(task, image(*codes)) == [ImagePiece(codes, size, size)]


def test_image_that_is_not_square() -> None:
    found = pieces(Task.TEXT_TO_IMAGE, image(1, 2, 3, 4, 5, 6), width=24, height=16)
    assert found == [ImagePiece((1, 2, 3, 4, 5, 6), 16, 24)]


def test_mixed_answer_in_order() -> None:
    ids = [*image(*range(9)), V.eoi, V.bos, 72, 105, V.eos]
    found = pieces(Task.TEXT_IMAGE_TO_TEXT_IMAGE, ids)
    assert found == [ImagePiece(tuple(range(9)), 24, 24), TextPiece("Hi")]


def test_mixed_answer_that_ended_with_its_image() -> None:
    found = pieces(Task.TEXT_IMAGE_TO_TEXT_IMAGE, image(*range(9)))
    assert found[1] == TextPiece("")


def test_speech_ends_at_the_first_id_that_is_no_unit() -> None:
    found = pieces(Task.TEXT_TO_SPEECH, [*speech(3, 4), V.eoa, *speech(5)], style="emotion-sad")
    assert found == [SpeechPiece((3, 4), "emotion-sad", 5)]
    assert pieces(Task.SPEECH_TO_SPEECH, [V.eos]) == [SpeechPiece((), None, 5)]


def test_filled_in_speech_goes_on_behind_its_gap() -> None:
    ids = [*speech(3), V.eoa, *speech(5), V.eoa]
    targets = (*speech(3), V.mask, *speech(5), V.eoa)
    found = pieces(Task.TEXT_TO_SPEECH, ids, target_token_ids=targets)
    assert found == [SpeechPiece((3, 5), None, 5)]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (image(1, 2, 3), "has 3 of the 4 codes of a 16×16 image"),
        ([*image(1, 2), 65, *image(3)], r"id 65 at slot 2 .* is no image code"),
        ([*image(1, 2), V.mask, *image(3)], "is no image code"),
        ([*image(1, 2, 3), *speech(1)], "is no image code"),
    ],
    ids=["cut short", "text", "mask", "speech"],
)
def test_what_is_no_image(ids, message) -> None:
    with pytest.raises(ValueError, match=message):
        pieces(Task.TEXT_TO_IMAGE, ids)


def test_mixed_answer_of_another_size() -> None:
    ids = [*image(*range(9)), *image(1, 2)]
    with pytest.raises(ValueError, match="follow the image of a mixed answer"):
        pieces(Task.TEXT_IMAGE_TO_TEXT_IMAGE, ids)


def request_output(prompt, *completions, finished=True):
    outputs = [SimpleNamespace(token_ids=ids, text="") for ids in completions]
    return SimpleNamespace(
        request_id="7", prompt_token_ids=prompt, outputs=outputs, finished=finished
    )


def test_task_comes_from_the_prompt_and_every_completion_is_read() -> None:
    params = SimpleNamespace(extra_args={"dynin_resolution": 8}, detokenize=False, seed=None)
    output = request_output([V.t2i, V.bos, V.eos, V.soi], image(1), image(2))
    found = output_pieces(output, params, CONFIG, decode_text)
    assert found == [[ImagePiece((1,), 8, 8)], [ImagePiece((2,), 8, 8)]]


def test_unfinished_output() -> None:
    params = SimpleNamespace(extra_args={}, detokenize=True, seed=None)
    with pytest.raises(ValueError, match="not finished"):
        output_pieces(request_output([V.bos], [65], finished=False), params, CONFIG, decode_text)
