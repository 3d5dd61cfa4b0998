"""Strings and media to heads with a real tokenizer; the chat template agrees with the layouts."""

import dataclasses

import pytest

from vllm_dynin.canvas import Parity
from vllm_dynin.processors import chat
from vllm_dynin.processors import templates as tp
from vllm_dynin.processors.assemble import PromptAssembler, expand_media


@pytest.fixture(scope="module")
def assembler(tokenizer, vocabulary) -> PromptAssembler:
    return PromptAssembler(
        vocabulary=vocabulary,
        num_rows=vocabulary.num_used,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
    )


def question(kind, content="Describe the picture in detail, please."):
    return [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": content}]}]


def turn_ids(assembler, content="Describe the picture in detail, please."):
    return assembler.encode(chat.user_turn(content))


def test_control_tokens_in_strings_become_their_ids(assembler, vocabulary) -> None:
    ids = turn_ids(assembler, "red")
    assert ids[0] == vocabulary.start_header
    assert ids.count(vocabulary.end_header) == 2
    assert ids.count(vocabulary.eot) == 1


def test_chat_template_builds_the_layouts_of_understanding(assembler, vocabulary) -> None:
    turn = turn_ids(assembler)
    plain = [{"role": "user", "content": "Describe the picture in detail, please."}]
    assert assembler.chat(plain) == tp.text_head(turn, vocabulary)
    images = [[1, 2, 3], [4]]
    two = [{"role": "user", "content": [{"type": "image"}, *question("image")[0]["content"]]}]
    assert assembler.chat(two, images=images) == tp.image_to_text_head(images, turn, vocabulary)
    frames = [[1, 2], [3, 4]]
    assert assembler.chat(question("video"), videos=[[1, 2, 3, 4]]) == tp.video_to_text_head(
        frames, turn, vocabulary
    )
    heard = assembler.chat(question("audio"), speech=[[5, 6]])
    assert heard == tp.speech_to_text_head([5, 6], turn, vocabulary)
    instruction = chat.TRANSCRIBE_INSTRUCTIONS[0]
    assert assembler.speech_to_text([5, 6]) == assembler.chat(
        question("audio", instruction), speech=[[5, 6]]
    )


def test_interleaved_media_stand_where_they_were(assembler, vocabulary) -> None:
    v = vocabulary
    parts = [
        {"type": "text", "text": "red"},
        {"type": "image"},
        {"type": "audio"},
        {"type": "text", "text": "blue"},
    ]
    head = assembler.chat(
        [{"role": "user", "content": parts}], images=[[7]], speech=[[8]], interleave_media=True
    )
    media = [v.soi, v.image.start + 7, v.eoi, v.soa, v.speech.start + 8, v.eoa]
    header = assembler.encode(chat.USER_HEADER + "red")
    rest = assembler.encode("blue" + chat.END_OF_TURN + chat.ASSISTANT_HEADER)
    assert head == (v.mmu, v.bos, *header, *media, *rest)


def test_heads_of_generation(assembler, tokenizer, vocabulary) -> None:
    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    prompt = encode("A red cube")
    assert assembler.text_to_image("A red cube") == tp.text_to_image_head(prompt, vocabulary)
    assert assembler.image_to_image("A red cube", [[1]]) == tp.image_to_image_head(
        [[1]], prompt, vocabulary
    )
    assert assembler.image_to_image(
        "A red cube", [[1]], is_alternative=True
    ) == tp.image_to_image_alternative_head([[1]], prompt, vocabulary)
    assert assembler.text_image_to_text_image(
        "A red cube", [[1]]
    ) == tp.text_image_to_text_image_head([[1]], prompt, vocabulary)
    spoken = encode(chat.user_turn("Generate speech for the given text.\nA red cube"))
    assert assembler.text_to_speech("A red cube") == tp.text_to_speech_head(spoken, vocabulary)
    assert assembler.speech_to_speech([3], images=[[1]]) == tp.speech_to_speech_head(
        [3],
        vocabulary,
        user_header_ids=encode("<|start_header_id|>user<|end_header_id|>\n"),
        assistant_turn_ids=encode("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"),
        images=[[1]],
    )
    assert assembler.video_to_speech("A red cube", [[1], [2]]) == tp.video_to_speech_head(
        [[1], [2]], prompt, vocabulary
    )
    benchmark = assembler.benchmark("A red cube", enable_thinking=True)
    assert benchmark == tuple(encode(chat.benchmark_turn("A red cube", enable_thinking=True)))


def test_small_vocabulary_has_its_own_columns(assembler, vocabulary) -> None:
    v = vocabulary
    canvas = assembler.canvas(assembler.text_to_image(""), 4, is_guided=True)
    assert canvas.regions[0].columns == ((v.image.start, v.image.stop),)
    assert canvas.slots == (v.mask,) * 4 + (v.eoi,)
    assert canvas.conditional == canvas.unconditional.stream


def test_samples_come_from_the_same_head(assembler, vocabulary) -> None:
    head = assembler.text_to_image("A red cube")
    made = assembler.sample(head, vocabulary.image_ids([1, 2]))
    assert made.ids == (*head, *vocabulary.image_ids([1, 2]), vocabulary.eoi)


def test_long_text_is_refused_or_cut(assembler) -> None:
    text = "red cube " * 100
    with pytest.raises(ValueError, match="shorten the text by"):
        assembler.text_to_image(text)
    reference = dataclasses.replace(assembler, parity=Parity.REFERENCE)
    head = reference.text_to_image(text)
    assert (len(head), head[-2]) == (130, assembler.vocabulary.eos)


def test_length_limit(assembler) -> None:
    limited = dataclasses.replace(assembler, max_length=140)
    head = limited.text_to_image("red")
    assert limited.canvas(head, 9).max_position == 139
    with pytest.raises(ValueError, match="take 141 positions, the model has 140"):
        limited.canvas(head, 10)


@pytest.mark.parametrize(
    ("media", "message"),
    [
        ({}, "1 image placeholders, but 0 image inputs"),
        ({"images": [[1], [2]]}, "1 image placeholders, but 2 image inputs"),
        ({"images": [[1]], "speech": [[1]]}, "0 audio placeholders, but 1 audio inputs"),
        ({"images": [[32]]}, "image code 32 is outside"),
    ],
)
def test_media_that_do_not_match_are_refused(assembler, media, message) -> None:
    with pytest.raises(ValueError, match=message):
        assembler.chat(question("image"), **media)


def test_a_full_medium_is_no_placeholder(vocabulary) -> None:
    v = vocabulary
    ids = [v.mmu, v.soi, v.image.start, v.eoi, v.bos]
    assert expand_media(ids, v) == tuple(ids)
