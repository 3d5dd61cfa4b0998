"""The reasoning parser `dynin`: fills the OpenAI field `reasoning` from the thinking part.

The plugin registers it by name (`--reasoning-parser dynin`), so that vLLM imports this module,
which needs vLLM, when a server asks for it.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.reasoning import ReasoningParser

from vllm_dynin.processors.chat import THINK_CLOSE, THINK_OPEN
from vllm_dynin.processors.thinking import Parts, ThinkingSplitter, split_thinking

if TYPE_CHECKING:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.tokenizers import TokenizerLike

NAME = "dynin"
"""Name of the parser on vLLM's command line."""


class DyninReasoningParser(ReasoningParser):
    """Separates `<think> … </think>`, where the tags are ordinary text of several tokens.

    vLLM makes one parser a request. `engine_based_streaming` makes it ask this parser, not the
    token ids, when the thinking part has ended, and collect what is held back at the end.

    Args:
        tokenizer: decodes ids where vLLM hands over ids only.
        kwargs: `chat_template_kwargs` of the request, for `enable_thinking`.
    """

    engine_based_streaming = True

    def __init__(self, tokenizer: TokenizerLike, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        template_options = kwargs.get("chat_template_kwargs") or {}
        self._is_thinking = template_options.get("enable_thinking") is True
        self._splitter = ThinkingSplitter(is_thinking=self._is_thinking)

    @property
    def reasoning_start_str(self) -> str:
        """The opening tag."""
        return THINK_OPEN

    @property
    def reasoning_end_str(self) -> str:
        """The closing tag."""
        return THINK_CLOSE

    def has_engine_confirmed_reasoning_end(self) -> bool:
        """Whether the streamed answer has reached its content."""
        return self._splitter.has_reached_content

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """False: vLLM asks this of the prompt, and no prompt decides whether the answer thinks.

        A closing tag in an earlier turn of the conversation must not count.
        """
        return False

    def extract_reasoning(
        self, model_output: str, request: ChatCompletionRequest | ResponsesRequest
    ) -> tuple[str | None, str | None]:
        """Reasoning and content of a whole answer; None where there is none."""
        parts = split_thinking(model_output, is_thinking=self._is_thinking)
        if not parts.reasoning:
            return None, parts.content
        return parts.reasoning, parts.content or None

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """The next piece of a streamed answer, split; None while all of it is held back."""
        return _message(self._splitter.feed(delta_text))

    def finish_streaming(self) -> DeltaMessage | None:
        """What was held back when the stream ended."""
        return _message(self._splitter.finish())

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """Ids behind the closing tag; all of them if the answer does not think."""
        text = self._decode(input_ids)
        if not self._thinks(text):
            return input_ids
        return input_ids[self._num_ids_up_to(input_ids, text, THINK_CLOSE) :]

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """Tokens of the thinking part, without those that spell the tags."""
        ids = list(token_ids)
        text = self._decode(ids)
        if not self._thinks(text):
            return 0
        start = 0
        if text.lstrip().startswith(THINK_OPEN):
            start = self._num_ids_up_to(ids, text, THINK_OPEN)
        end = self._num_ids_up_to(ids, text, THINK_CLOSE)
        if THINK_CLOSE in text:
            before = text.index(THINK_CLOSE)
            # Ids whose text ends in front of the tag.
            end = bisect.bisect_right(
                range(end), before, key=lambda n: len(self._decode(ids[: n + 1]))
            )
        return max(0, end - start)

    def _thinks(self, text: str) -> bool:
        return self._is_thinking or text.lstrip().startswith(THINK_OPEN)

    def _decode(self, ids: list[int]) -> str:
        return str(self.model_tokenizer.decode(ids, skip_special_tokens=True))

    def _num_ids_up_to(self, ids: list[int], text: str, tag: str) -> int:
        """Ids it takes to spell the text up to the end of `tag`; all without the tag."""
        if tag not in text:
            return len(ids)
        return bisect.bisect_left(
            range(len(ids) + 1), True, key=lambda n: tag in self._decode(ids[:n])
        )


def _message(parts: Parts) -> DeltaMessage | None:
    if not parts.reasoning and not parts.content:
        return None
    return DeltaMessage(reasoning=parts.reasoning or None, content=parts.content or None)
