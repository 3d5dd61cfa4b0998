"""The thinking part of an answer: whole or in pieces, the split is the same."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dynin.processors.thinking import Parts, ThinkingSplitter, split_thinking

WHOLE = [
    ("<think>a b</think>\nc", False, Parts("a b", "\nc")),
    ("<think>a b</think>\nc", True, Parts("a b", "\nc")),
    (" \n<think>a</think>b", False, Parts("a", "b")),
    ("plain answer", False, Parts("", "plain answer")),
    ("plain </think> answer", False, Parts("", "plain </think> answer")),
    ("plain </think> answer", True, Parts("plain ", " answer")),
    ("never closed", True, Parts("never closed", "")),
    ("<think>never closed </thin", False, Parts("never closed </thin", "")),
    ("<think></think>c", False, Parts("", "c")),
    ("<think>a</think>b</think>c", False, Parts("a", "b</think>c")),
    ("<think>a<think>b</think>c", False, Parts("a<think>b", "c")),
    ("<thi", False, Parts("", "<thi")),
    ("<thi", True, Parts("<thi", "")),
    ("<thigh>", False, Parts("", "<thigh>")),
    ("<think>a <</think>b", False, Parts("a <", "b")),
    ("  ", False, Parts("", "  ")),
    ("", False, Parts("", "")),
]


@pytest.mark.parametrize(("text", "is_thinking", "expected"), WHOLE)
def test_whole_answer(text, is_thinking, expected) -> None:
    assert split_thinking(text, is_thinking=is_thinking) == expected


def feed(pieces, is_thinking):
    splitter = ThinkingSplitter(is_thinking=is_thinking)
    parts = [*[splitter.feed(piece) for piece in pieces], splitter.finish()]
    return Parts("".join(p.reasoning for p in parts), "".join(p.content for p in parts))


@pytest.mark.parametrize(("text", "is_thinking", "expected"), WHOLE)
def test_letter_by_letter(text, is_thinking, expected) -> None:
    assert feed(list(text), is_thinking) == expected


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(["<think>", "</think>", "</", "<", "think>", " ", "a", "\n", ">", ""])
    ),
    is_thinking=st.booleans(),
)
def test_pieces_add_up_to_the_whole(pieces, is_thinking) -> None:
    whole = split_thinking("".join(pieces), is_thinking=is_thinking)
    assert feed(pieces, is_thinking) == whole


def test_only_what_may_be_a_tag_is_held_back() -> None:
    splitter = ThinkingSplitter()
    assert splitter.feed("<think>alpha <") == Parts("alpha ", "")
    assert splitter.feed("b </thi") == Parts("<b ", "")
    assert not splitter.has_reached_content
    assert splitter.feed("nk>c") == Parts("", "c")
    assert splitter.has_reached_content
    assert splitter.feed("d <think>") == Parts("", "d <think>")
