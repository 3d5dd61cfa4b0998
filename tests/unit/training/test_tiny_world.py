"""The tiny world: what is held out, pictures and their edits, clips, utterances, records."""

import random

import numpy as np
import pytest
import torch

from vllm_dynin.canvas import Task
from vllm_dynin.processors.codecs.lfq import signs_from_codes
from vllm_dynin.processors.codecs.speech import SpeechCodec
from vllm_dynin.processors.train_tokenizer import train_tokenizer
from vllm_dynin.training_ext.tiny import digits, words
from vllm_dynin.training_ext.tiny.records import CODED_FRAMES, clip_codes, encode, up_to
from vllm_dynin.training_ext.tiny.utterances import sequences, utterances


def test_operations():
    assert words.carry_out("copy", (7, 0, 3)) == [7, 0, 3]
    assert words.carry_out("reverse", (7, 0, 3)) == [3, 0, 7]
    assert words.carry_out("sort", (7, 0, 3)) == [0, 3, 7]


def test_records_hold_nothing_that_is_held_out(tiny_records):
    lists = [one.answer.split() for one in tiny_records[Task.TEXT_TO_TEXT]]
    spoken = [one.answer.split() for one in tiny_records[Task.SPEECH_TO_TEXT]]
    said = [one.text.split() for one in tiny_records[Task.TEXT_TO_SPEECH]]

    def numbers(names):
        return tuple(words.DIGIT_WORDS.index(name) for name in names)

    assert not any(words.is_list_held_out(numbers(answer)) for answer in lists)
    assert not any(words.is_utterance_held_out(numbers(answer)) for answer in spoken + said)
    assert {len(answer) for answer in lists} == {1, 2, 3, 4} == {len(answer) for answer in spoken}
    short = up_to(tiny_records[Task.TEXT_TO_SPEECH], 2)
    assert {len(one.text.split()) for one in short} == {1, 2}


def test_a_set_is_held_out_in_every_order_and_an_utterance_in_its_own():
    rng = random.Random(3)
    chosen = words.draw_list(rng, 3, is_held_out=True)
    assert words.is_list_held_out(tuple(reversed(chosen)))
    assert not any(words.is_list_held_out((digit,)) for digit in range(10))
    pairs = [(a, b) for a in range(10) for b in range(10)]
    shares = [words.is_utterance_held_out(pair) for pair in pairs]
    assert 3 <= sum(shares) <= 20
    assert any(words.is_utterance_held_out((a, b)) != words.is_utterance_held_out((b, a))
               for a, b in pairs)  # fmt: skip


def test_every_word_of_the_world_is_one_piece():
    tokenizer = train_tokenizer(words.tokenizer_texts(), 576)
    for word in (*words.DIGIT_WORDS, *digits.DIRECTIONS, "moving"):
        assert len(tokenizer.tokenize(word)) == 1 == len(tokenizer.tokenize(f" {word}"))


def test_digits_split_into_two_disjoint_parts():
    assert digits.num_train() == 1437
    assert list(digits.test_indices()) == list(range(1437, 1797))
    seen = {digits.image(index, 8).tobytes() for index in range(1437)}
    unseen = [digits.image(index, 8).tobytes() for index in digits.test_indices()]
    assert not seen.intersection(unseen)
    assert {digits.label(index) for index in digits.test_indices()} == set(range(10))


def test_edits_are_exact_in_codes(tiny_codec):
    """A mirrored picture's bits are the mirrored bits, an inverted one's the inverted bits."""
    picture = digits.black_and_white(digits.image(5))
    plain, *edited = (
        _bits(encode(tiny_codec, [one], 64)[0])
        for one in (picture, *(digits.edited(picture, edit) for edit in digits.EDITS))
    )
    assert list(digits.EDITS) == ["invert", "mirror", "turn"]
    assert torch.equal(edited[0], -plain)
    assert torch.equal(edited[1], plain.flip(-1))
    assert torch.equal(edited[2], plain.flip(-1, -2))
    assert not torch.equal(edited[1], plain)


def _bits(codes):
    signs = signs_from_codes(torch.tensor([codes]), 4, 4, 4)
    return torch.nn.functional.pixel_shuffle(signs, 2)[0, 0]


def test_a_varied_digit_is_another_picture_of_about_the_same_ink():
    plain = digits.image(9)
    varied = digits.varied(plain, random.Random(1))
    before, after = np.asarray(plain, float).mean(), np.asarray(varied, float).mean()
    assert varied.size == plain.size and varied.tobytes() != plain.tobytes()
    assert 0.5 < after / before < 1.5


@pytest.mark.parametrize("way", digits.DIRECTIONS)
def test_the_digit_of_a_clip_moves_where_it_says(way, tiny_codec):
    frames = [np.asarray(f.convert("L"), float) for f in digits.clip(digits.image(0, 48), way)]
    assert len(frames) == digits.CLIP_FRAMES
    across, down = digits.DIRECTIONS[way]
    # Ink that was in the middle frame lies a step further in the next one.
    moved = np.roll(frames[4], (digits.CLIP_STEP * down, digits.CLIP_STEP * across), (0, 1))
    assert np.array_equal(moved[3:-3, 3:-3], frames[5][3:-3, 3:-3])
    codes = clip_codes(tiny_codec, [digits.clip(digits.image(0, 48), way)])
    assert [len(frame) for frame in codes[0]] == [9] * CODED_FRAMES


def test_utterances_are_what_the_codec_can_say():
    codec = SpeechCodec.from_pretrained()
    everything = utterances()
    said = {utterance.digits for utterance in everything}
    for is_held_out in (False, True):
        assert said.issuperset(sequences(is_held_out=is_held_out))
    for utterance in everything:
        codec.check_units(utterance.units)
    plain = next(u for u in everything if u.digits == (7,) and u.is_plain)
    names = codec.backend.config.unit_names
    assert [names[unit] for unit in plain.units][1:3] == ["s1", "s2"]


def test_a_damaged_line_of_units_is_named(tmp_path):
    path = tmp_path / "units.txt"
    path.write_text("12 = 4 5\n12 4 x\n")
    with pytest.raises(ValueError, match="'12 4 x' is no utterance"):
        utterances(path)
