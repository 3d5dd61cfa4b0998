"""Answers that think: finding the trace in a row, and holding an answer to its switch.

An answer with thinking is `<think> … </think>` and what follows, as the released stage 3 trains it.
Sets of reasoning keep the trace in many places (a list of generations, a column of its own, the
messages) and a bare final answer beside it, so the trace has to be looked for first.

Source: the loaders of AIDASLab/Dynin-Omni@d6e3ca8, which skip answers without `<think>`; the
columns are those of OpenR1-Math-220k, Mixture-of-Thoughts, OpenMathReasoning and the Llama-Nemotron
post-training set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vllm_dynin.canvas import Task
from vllm_dynin.processors.chat import THINK_CLOSE, THINK_OPEN
from vllm_dynin.training_ext.data.bad import BadKind, BadSample
from vllm_dynin.training_ext.data.raw import RawRecord

SWITCHED = (Task.TEXT_TO_TEXT, Task.IMAGE_TO_TEXT, Task.VIDEO_TO_TEXT)
"""Directions whose questions carry the switch."""

_WHOLE = ("trace", "generations", "generation", "generated_solution")
_TRACE_ONLY = ("reasoning_content", "reasoning", "thought", "thinking", "cot", "rationale")
_FINAL = ("final_answer", "expected_answer", "answer", "response", "output", "solution")
_ANSWERS = (*_FINAL, "completion")
_CORRECT = ("correctness_math_verify", "correctness_llama", "is_reasoning_complete")


def split_thought(text: str) -> tuple[str | None, str]:
    """The thought of an answer and what follows it; None and the text where it has no whole one.

    Chat templates of some teachers open the thought in the prompt: a text that closes one without
    opening it thinks, too. A thought that is never closed was cut off, and is none.
    """
    before, tag, after = text.partition(THINK_CLOSE)
    opened = before.lstrip()
    if tag and opened.startswith(THINK_OPEN):
        opened = opened[len(THINK_OPEN) :]
    elif THINK_OPEN in before:
        return None, text
    if not tag or not opened.strip() or not after.strip():
        return None, text
    return opened.strip(), after.strip()


def check_switch(thinking: bool | None, answer: str | None) -> None:
    """Whether an answer does what the switch behind its question asks for.

    Raises:
        BadSample: it is asked to think and does not (filtered), or is asked not to and does.
    """
    if thinking is None or answer is None:
        return
    is_thought = split_thought(answer)[0] is not None
    if thinking and not (is_thought and answer.lstrip().startswith(THINK_OPEN)):
        raise BadSample(
            BadKind.NO_THOUGHT,
            f"the answer is asked for with thinking and has no {THINK_OPEN} … {THINK_CLOSE} with "
            f"an answer behind it: {answer[:40]!r}",
        )
    if not thinking and THINK_OPEN in answer:
        raise BadSample(
            BadKind.FIELDS, f"the answer is asked for without thinking and has {THINK_OPEN}"
        )


def with_thinking(made: Iterable[RawRecord], thinking: bool) -> list[RawRecord]:
    """Records whose switch is set: the thought is demanded, or taken out of the answer.

    Directions without the switch stay as they are.

    Raises:
        BadSample: no answer can do what is asked.
    """
    found, why = [], None
    for raw in made:
        if raw.task not in SWITCHED or raw.answer is None:
            found.append(raw)
            continue
        try:
            found.append(_switched(raw, raw.answer, thinking))
        except BadSample as error:
            why = error
    if not found and why is not None:
        raise why
    return found


def _switched(raw: RawRecord, answer: str, thinking: bool) -> RawRecord:
    thought, final = split_thought(answer)
    if not thinking:
        if thought is None and (THINK_OPEN in answer or THINK_CLOSE in answer):
            raise BadSample(BadKind.NO_THOUGHT, "a thought without an end has no answer behind it")
        return replace(raw, answer=final, thinking=False)
    if thought is not None:
        answer = _joined(thought, final)
    check_switch(True, answer)
    return replace(raw, answer=answer, thinking=True)


def _joined(thought: str, final: str) -> str:
    return f"{THINK_OPEN}\n{thought}\n{THINK_CLOSE}\n\n{final}"


def answers_in_columns(fields: Mapping[str, Any], thinking: bool) -> Iterator[str]:
    """Answers that a row's columns may hold, the likeliest first.

    Args:
        fields: of the row.
        thinking: whole traces first, and right ones before others; or bare final answers first.
    """
    bare = [text for name in _ANSWERS for text in _texts(fields.get(name))]
    whole = [text for name in _WHOLE for text in _ordered(fields, name)]
    traces = [text for name in _TRACE_ONLY for text in _texts(fields.get(name))]
    if not thinking:
        yield from (*bare, *whole)
        return
    yield from (text for text in (*whole, *bare) if split_thought(text)[0] is not None)
    # A column of its own for the thought, beside the bare answer.
    yield from (_joined(_unwrapped(trace), text) for trace in traces[:1] for text in bare[:1])


def _unwrapped(trace: str) -> str:
    return trace.replace(THINK_OPEN, "").replace(THINK_CLOSE, "").strip()


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        # `reasoning` is a switch in some sets.
        return [value] if value.strip() and value.strip().lower() not in ("on", "off") else []
    return []


def _ordered(fields: Mapping[str, Any], name: str) -> list[str]:
    """The texts of a column; of a list, those that a verifier found right come first."""
    value = fields.get(name)
    if not isinstance(value, Sequence) or isinstance(value, str):
        return _texts(value)
    texts = [(place, text) for place, one in enumerate(value) for text in _texts(one)]
    marks = next((fields[mark] for mark in _CORRECT if isinstance(fields.get(mark), Sequence)), ())

    def is_wrong(place: int) -> bool:
        return not (place < len(marks) and marks[place] is True)

    return [text for place, text in sorted(texts, key=lambda pair: is_wrong(pair[0]))]
