"""The chat template: strings written out, and equal to what transformers renders from it."""

import pytest

from vllm_dynin.processors import chat

USER = "<|start_header_id|>user<|end_header_id|>\n"
ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n"
BOS, EOT = "<|startoftext|>", "<|eot_id|>"
IMAGE = "<|reserved_token_0|><|reserved_token_1|>"
VIDEO = "<|reserved_token_2|><|reserved_token_3|>"
AUDIO = "<|reserved_token_13|><|reserved_token_14|>"
MMU, V2T, S2T = (f"<|reserved_token_{n}|>" for n in (5, 16, 12))


def text(value):
    return {"type": "text", "text": value}


def user(*content):
    return {"role": "user", "content": list(content)}


QUESTION = [{"role": "user", "content": "  Hello?\n"}]
TURNS = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "One"},
    {"role": "assistant", "content": "Two"},
    {"role": "user", "content": "Three"},
]
CASES = {
    "one turn": (QUESTION, {}, f"{BOS}{USER}Hello?{EOT}{ASSISTANT}"),
    "no generation prompt": (
        QUESTION,
        {"add_generation_prompt": False},
        f"{BOS}{USER}Hello?{EOT}",
    ),
    "thinking": (
        QUESTION,
        {"enable_thinking": True},
        f"{BOS}{USER}Hello?\n/think\n{EOT}{ASSISTANT}",
    ),
    "no thinking": (
        QUESTION,
        {"enable_thinking": False},
        f"{BOS}{USER}Hello?\n/no_think\n{EOT}{ASSISTANT}",
    ),
    "system and turns, thinking in the last only": (
        TURNS,
        {"enable_thinking": True},
        f"{BOS}<|start_header_id|>system<|end_header_id|>\nBe brief.{EOT}{USER}One{EOT}"
        f"{ASSISTANT}Two{EOT}{USER}Three\n/think\n{EOT}{ASSISTANT}",
    ),
    "text parts": ([user(text("a "), text("b"))], {}, f"{BOS}{USER}a b{EOT}{ASSISTANT}"),
    "image behind the text goes to the front": (
        [user(text("What?"), {"type": "image"})],
        {},
        f"{MMU}{IMAGE}{BOS}{USER}What?{EOT}{ASSISTANT}",
    ),
    "several images": (
        [user({"type": "image_url", "image_url": {"url": "x"}}, {"type": "image"}, text("Which?"))],
        {},
        f"{MMU}{IMAGE}{IMAGE}{BOS}{USER}Which?{EOT}{ASSISTANT}",
    ),
    "interleaved": (
        [user(text("Is "), {"type": "image"}, text(" like "), {"type": "image"}, text("?"))],
        {"interleave_media": True},
        f"{MMU}{BOS}{USER}Is {IMAGE} like {IMAGE}?{EOT}{ASSISTANT}",
    ),
    "image in a later turn": (
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hi"},
            user({"type": "image"}, text("this")),
        ],
        {},
        f"{MMU}{BOS}{USER}Hi{EOT}{ASSISTANT}Hi{EOT}{USER}{IMAGE}this{EOT}{ASSISTANT}",
    ),
    "video": (
        [user({"type": "video"}, text("What?"))],
        {},
        f"{V2T}{VIDEO}{BOS}{USER}What?{EOT}{ASSISTANT}",
    ),
    "speech has no BOS": (
        [user({"type": "audio"}, text("Write."))],
        {},
        f"{S2T}{AUDIO}{USER}Write.{EOT}{ASSISTANT}",
    ),
    "speech beside an image": (
        [user({"type": "input_audio"}, {"type": "image"})],
        {},
        f"{MMU}{AUDIO}{IMAGE}{BOS}{USER}{EOT}{ASSISTANT}",
    ),
    "empty assistant message": (
        [*QUESTION, {"role": "assistant", "content": None}, *QUESTION],
        {},
        f"{BOS}{USER}Hello?{EOT}{ASSISTANT}{EOT}{USER}Hello?{EOT}{ASSISTANT}",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rendered_prompt(name, tokenizer) -> None:
    messages, options, expected = CASES[name]
    assert chat.render_chat(messages, **options) == expected
    options = {"add_generation_prompt": True} | options
    assert tokenizer.apply_chat_template(messages, tokenize=False, **options) == expected


def test_unknown_part_is_refused(tokenizer) -> None:
    messages = [user({"type": "file"})]
    with pytest.raises(ValueError, match="content part of type file is not supported"):
        chat.render_chat(messages)
    with pytest.raises(Exception, match="content part of type file is not supported"):
        tokenizer.apply_chat_template(messages, tokenize=False)


def test_empty_conversation_is_refused() -> None:
    with pytest.raises(ValueError, match="conversation is empty"):
        chat.render_chat([])


def test_forms_of_the_original() -> None:
    assert chat.benchmark_turn("2+2?", enable_thinking=True) == (
        f"{USER}2+2?\n/think\n{EOT}{ASSISTANT}"
    )
    assert chat.benchmark_turn("2+2?", enable_thinking=False) == (
        f"{USER}2+2?\n/no_think\n{EOT}{ASSISTANT}"
    )
    assert chat.training_turn("2+2?") == f"{USER}2+2?\n{EOT}{ASSISTANT}"
    assert chat.training_turn("2+2?", enable_thinking=True) == (
        f"{USER}2+2? /think\n{EOT}{ASSISTANT}"
    )


def test_benchmark_thinking_is_the_chat_form_without_bos() -> None:
    rendered = chat.render_chat([{"role": "user", "content": "2+2?"}], enable_thinking=True)
    assert rendered == BOS + chat.benchmark_turn("2+2?", enable_thinking=True)
