"""Traces of reasoning sets: which column holds them, and answers that do as their switch asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.training_data import write_jsonl

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.data import open_mixture
from vllm_dynin.training_ext.data.adapters import find_adapter
from vllm_dynin.training_ext.data.bad import BadKind, BadSample
from vllm_dynin.training_ext.data.raw import RawRecord
from vllm_dynin.training_ext.data.rows import Row
from vllm_dynin.training_ext.data.thoughts import check_switch, split_thought

T2T = Task.TEXT_TO_TEXT
TRACE = "<think>\nOne and one.\n</think>\n\nTwo."
WRONG = "<think>\nGuess.\n</think>\n\nThree."
CUT = "<think>\nOne and"


def adapt(fields: dict[str, Any], name: str = "reasoning", **options: Any) -> list[RawRecord]:
    return find_adapter(name, **options)(Row(key="k", fields=fields), T2T)


OPEN_R1 = {
    "problem": "1 + 1?",
    "solution": "It is two.",
    "answer": "2",
    "generations": [CUT, WRONG, TRACE],
    "correctness_math_verify": [False, False, True],
    "messages": [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": TRACE},
    ],
}
"""The columns of OpenR1-Math-220k."""

SETS = {
    "OpenR1-Math": OPEN_R1,
    "messages only": {"messages": OPEN_R1["messages"], "num_tokens": 9, "source": "math"},
    "OpenMathReasoning": {
        "problem": "1 + 1?",
        "generated_solution": TRACE,
        "expected_answer": "Two.",
    },
    "Llama-Nemotron": {
        "input": [{"role": "user", "content": "1 + 1?"}],
        "output": TRACE,
        "reasoning": "on",
    },
    "problem and solution": {"problem": "1 + 1?", "solution": TRACE},
    "its own column": {"question": "1 + 1?", "reasoning": "One and one.", "answer": "Two."},
    "opened in the prompt": {"prompt": "1 + 1?", "response": TRACE.removeprefix("<think>\n")},
}


@pytest.mark.parametrize("name", SETS)
def test_the_trace_is_found(name: str) -> None:
    (made,) = adapt(SETS[name])
    assert (made.text, made.answer, made.thinking) == ("1 + 1?", TRACE, True)


@pytest.mark.parametrize("name", SETS)
def test_the_bare_answer_without_thinking(name: str) -> None:
    (made,) = adapt(SETS[name], thinking=False)
    assert made.answer == ("2" if name == "OpenR1-Math" else "Two.")
    assert (made.text, made.thinking) == ("1 + 1?", False)


@pytest.mark.parametrize(
    "fields",
    [
        {"problem": "1 + 1?", "answer": "2"},
        {"problem": "1 + 1?", "answer": "2", "generations": [CUT]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"input": [{"role": "user", "content": "q"}], "output": "a", "reasoning": "off"},
        {"problem": "1 + 1?", "answer": "<think>\n</think>\n\n2"},
    ],
)
def test_a_row_without_a_thought_is_filtered_out(fields: dict[str, Any]) -> None:
    """It was trained as thinking that answers at once."""
    with pytest.raises(BadSample) as caught:
        adapt(fields)
    assert caught.value.kind is BadKind.NO_THOUGHT and caught.value.kind.is_filter


def test_a_named_trace_comes_first() -> None:
    fields = {"q": "1 + 1?", "mine": TRACE, "generations": [WRONG], "answer": "2"}
    (made,) = adapt(fields, columns={"question": "q", "trace": "mine"})
    assert made.answer == TRACE


def test_any_adapter_takes_the_switch() -> None:
    fields = {"question": "q", "answer": TRACE}
    assert adapt(fields, "pair", thinking=True)[0].thinking is True
    assert adapt(fields, "pair", thinking=False)[0].answer == "Two."
    talk = {"messages": [*OPEN_R1["messages"], {"role": "user", "content": "And?"},
                         {"role": "assistant", "content": "No."}]}  # fmt: skip
    assert [m.key for m in adapt(talk, "dialogue", thinking=True)] == ["k#0"]
    assert [m.answer for m in adapt(talk, "dialogue", thinking=False)] == ["Two.", "No."]


def test_thoughts() -> None:
    assert split_thought(TRACE) == ("One and one.", "Two.")
    assert split_thought("Two.") == (None, "Two.")
    assert split_thought(CUT) == (None, CUT)
    assert split_thought("Well, <think>x</think> y")[0] is None
    check_switch(True, TRACE)
    check_switch(False, "Two.")
    check_switch(None, CUT)
    with pytest.raises(BadSample, match="without thinking and has <think>"):
        check_switch(False, TRACE)


def test_both_forms_by_a_stated_share(tmp_path: Path) -> None:
    """A set is named twice; the weights are the share of each form."""
    rows = [{"problem": f"{n}?", "answer": "2", "generations": [TRACE]} for n in range(50)]
    path = str(write_jsonl(tmp_path / "maths.jsonl", rows))
    one = {"path": path, "adapter": "reasoning"}
    sources = [
        {**one, "name": "with", "weight": 3},
        {**one, "name": "without", "thinking": False, "weight": 1},
    ]
    drawn = open_mixture({"tasks": {"t2t": {"rows": 400, "sources": sources}}}).next_step()[T2T]
    with_it = [record for record in drawn if record.thinking]
    assert all(record.answer == TRACE for record in with_it)
    assert all(record.answer == "2" for record in drawn if record.thinking is False)
    assert 0.68 < len(with_it) / 400 < 0.82
    assert {record.thinking for record in drawn} == {True, False}


def test_our_own_manifest_is_held_to_its_switch(tmp_path: Path) -> None:
    rows = [{"text": "q", "answer": TRACE if n % 4 else "2", "thinking": True} for n in range(300)]
    path = str(write_jsonl(tmp_path / "own.jsonl", rows))
    mixture = open_mixture({"tasks": {"t2t": {"rows": 300, "sources": [{"path": path}]}}})
    assert all(record.answer == TRACE for record in mixture.next_step()[T2T])
    assert mixture.bad.filtered_of("own.jsonl") >= 75 and mixture.bad.bad_of("own.jsonl") == 0


def test_where_the_switch_means_nothing(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "speech.jsonl", [{"speech": [1], "answer": "a"}]))
    with pytest.raises(ValueError, match="s2t has no thinking switch"):
        open_mixture({"tasks": {"s2t": {"rows": 1, "sources": [{"path": path, "thinking": True}]}}})
