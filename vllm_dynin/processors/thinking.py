"""Splitting an answer into its thinking part and its content.

The tags are ordinary text that takes several tokens, and a block of a diffusion answer may hold an
end tag in its middle or half of one at its edge. So the split works on text, and holds back what
may turn out to be a tag.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vllm_dynin.processors.chat import THINK_CLOSE, THINK_OPEN


@dataclass(frozen=True)
class Parts:
    """A piece of an answer, split.

    Args:
        reasoning: text of the thinking part, without its tags.
        content: text of the answer proper.
    """

    reasoning: str = ""
    content: str = ""


class _State(enum.Enum):
    START = enum.auto()
    REASONING = enum.auto()
    CONTENT = enum.auto()


class ThinkingSplitter:
    """Splits one answer, fed in pieces of any size.

    An answer thinks if it opens with `<think>` (white space before it is dropped), or if thinking
    was asked for: then a missing opening tag is supplied, as the original's evaluation does.
    Everything behind the first `</think>` is content; without one, a thinking answer has none.
    Fed in pieces or at once, the parts add up to the same.

    Args:
        is_thinking: whether thinking was asked for (`enable_thinking`).
    """

    def __init__(self, *, is_thinking: bool = False) -> None:
        self._is_thinking = is_thinking
        self._state = _State.START
        self._held = ""

    @property
    def has_reached_content(self) -> bool:
        """Whether all that follows is content."""
        return self._state is _State.CONTENT

    def feed(self, text: str) -> Parts:
        """Split the next piece; text that may be part of a tag is held back."""
        self._held += text
        if self._state is _State.START:
            self._leave_start()
        if self._state is _State.REASONING:
            before, tag, after = self._held.partition(THINK_CLOSE)
            if tag:
                self._state, self._held = _State.CONTENT, ""
                return Parts(before, after)
            num_held = _num_open_tail(self._held, THINK_CLOSE)
            cut = len(self._held) - num_held
            ready, self._held = self._held[:cut], self._held[cut:]
            return Parts(reasoning=ready)
        if self._state is _State.CONTENT:
            ready, self._held = self._held, ""
            return Parts(content=ready)
        return Parts()

    def finish(self) -> Parts:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        if self._state is _State.REASONING or (self._state is _State.START and self._is_thinking):
            return Parts(reasoning=held)
        return Parts(content=held)

    def _leave_start(self) -> None:
        """Decide whether the answer thinks, once enough of it is there."""
        body = self._held.lstrip()
        if body.startswith(THINK_OPEN):
            self._state, self._held = _State.REASONING, body[len(THINK_OPEN) :]
        elif not THINK_OPEN.startswith(body):
            self._state = _State.REASONING if self._is_thinking else _State.CONTENT


def _num_open_tail(text: str, tag: str) -> int:
    """Length of the longest end of `text` that `tag` starts with."""
    return next(n for n in range(min(len(text), len(tag) - 1), -1, -1) if text.endswith(tag[:n]))


def split_thinking(text: str, *, is_thinking: bool = False) -> Parts:
    """Split a whole answer; see `ThinkingSplitter`."""
    splitter = ThinkingSplitter(is_thinking=is_thinking)
    first, rest = splitter.feed(text), splitter.finish()
    return Parts(first.reasoning + rest.reasoning, first.content + rest.content)
