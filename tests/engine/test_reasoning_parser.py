"""The reasoning parser through vLLM's own parser objects, as the server drives them."""

import pytest

pytest.importorskip("vllm", reason="needs vLLM")

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager
from vllm.reasoning import ReasoningParserManager
from vllm.renderers.hf import _detect_content_format

from vllm_dynin.processors.chat import CHAT_TEMPLATE

ANSWER = "<think>Two plus two, so four.</think>\nFour."


@pytest.fixture(scope="module")
def parser_class(tokenizer):
    ReasoningParserManager.register_lazy_module(
        "dynin", "vllm_dynin.entrypoints.reasoning", "DyninReasoningParser"
    )
    return ParserManager.get_parser(reasoning_parser_name="dynin", tokenizer=tokenizer)


def make_request(**options) -> ChatCompletionRequest:
    return ChatCompletionRequest(messages=[{"role": "user", "content": "2+2?"}], **options)


def make_parser(parser_class, tokenizer, **template_options):
    return parser_class(tokenizer, chat_template_kwargs=template_options)


def stream(parser, tokenizer, ids, block, **request_options):
    """Feed `ids` block by block; join what comes out."""
    request = make_request(stream=True, **request_options)
    reasoning, content, shown = "", "", ""
    for start in range(0, len(ids), block):
        so_far = tokenizer.decode(ids[: start + block], skip_special_tokens=True)
        delta = parser.parse_delta(
            so_far[len(shown) :],
            list(ids[start : start + block]),
            request,
            prompt_token_ids=[1, 2, 3],
            finished=start + block >= len(ids),
        )
        shown = so_far
        if delta is not None:
            reasoning += delta.reasoning or ""
            content += delta.content or ""
    return reasoning, content


def test_whole_answer(parser_class, tokenizer) -> None:
    parser = make_parser(parser_class, tokenizer)
    assert parser.parse(ANSWER, make_request())[:2] == ("Two plus two, so four.", "\nFour.")
    assert parser.parse("Four.", make_request())[:2] == (None, "Four.")
    asked = make_parser(parser_class, tokenizer, enable_thinking=True)
    assert asked.parse("so</think>Four.", make_request())[:2] == ("so", "Four.")
    assert asked.parse("so", make_request())[:2] == ("so", None)


@pytest.mark.parametrize("block", [1, 2, 3, 5, 7, 16, 1000])
@pytest.mark.parametrize(
    ("answer", "options"),
    [
        (ANSWER, {}),
        (ANSWER, {"enable_thinking": True}),
        (ANSWER, {"enable_thinking": False}),
        ("No thinking here, 1 < 2.", {}),
        ("so</think>Four.", {"enable_thinking": True}),
        ("<think>cut in the tag </thi", {}),
        ("<thi", {}),
        ("<think>a</think>", {}),
    ],
)
def test_stream_equals_whole(parser_class, tokenizer, answer, options, block) -> None:
    ids = tokenizer.encode(answer, add_special_tokens=False)
    whole = make_parser(parser_class, tokenizer, **options).parse(answer, make_request())
    parser = make_parser(parser_class, tokenizer, **options)
    assert stream(parser, tokenizer, ids, block) == (whole[0] or "", whole[1] or "")


def test_an_end_tag_in_an_earlier_turn_changes_nothing(parser_class, tokenizer) -> None:
    prompt = tokenizer.encode("<think>old</think>", add_special_tokens=False)
    parser = make_parser(parser_class, tokenizer)
    delta = parser.parse_delta(
        "<think>new", [1], make_request(stream=True), prompt_token_ids=prompt, finished=False
    )
    assert (delta.reasoning, delta.content) == ("new", None)


def test_reasoning_is_left_out_when_the_client_does_not_want_it(parser_class, tokenizer) -> None:
    ids = tokenizer.encode(ANSWER, add_special_tokens=False)
    parser = make_parser(parser_class, tokenizer)
    assert stream(parser, tokenizer, ids, 4, include_reasoning=False) == ("", "\nFour.")


def test_counts_and_content_ids(parser_class, tokenizer) -> None:
    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    pieces = [encode(text) for text in ("<think>", "Two plus two.", "</think>", "Four.")]
    ids = [token for piece in pieces for token in piece]
    parser = make_parser(parser_class, tokenizer)
    assert len(pieces[2]) > 1  # the tags are text of several tokens
    assert parser.count_reasoning_tokens(ids) == len(pieces[1])
    assert parser.reasoning_parser.extract_content_ids(ids) == pieces[3]
    assert parser.count_reasoning_tokens(pieces[3]) == 0
    assert parser.reasoning_parser.extract_content_ids(pieces[3]) == pieces[3]
    assert parser.count_reasoning_tokens(pieces[0] + pieces[1]) == len(pieces[1])
    asked = make_parser(parser_class, tokenizer, enable_thinking=True)
    assert asked.count_reasoning_tokens(pieces[1] + pieces[2] + pieces[3]) == len(pieces[1])


def test_vllm_hands_the_template_content_parts() -> None:
    assert _detect_content_format(CHAT_TEMPLATE, default="string") == "openai"
