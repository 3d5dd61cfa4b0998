"""Exact match on combinations of words the model has never seen, by the real decoding loop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.training_ext.small_text import answer
from vllm_dynin.training_ext.tiny_text.tasks import Example


@dataclass(frozen=True, kw_only=True)
class Score:
    """How many answers are right to the letter.

    Args:
        num_right: of all examples.
        num_examples: how many there are.
        by_kind: share of right answers by operation and number of words.
        wrong: examples and the answers given to them, for a look.
    """

    num_right: int
    num_examples: int
    by_kind: dict[tuple[str, int], float]
    wrong: list[tuple[Example, str]]

    @property
    def exact_match(self) -> float:
        """Share of right answers."""
        return self.num_right / self.num_examples


def evaluate(
    model: LLaDA,
    tokenizer: PreTrainedTokenizerFast,
    examples: Iterable[Example],
    *,
    max_tokens: int,
    options: DenoiseParams | None = None,
) -> Score:
    """Answer all examples, one after the other.

    Args:
        model: the reference model.
        tokenizer: its tokenizer.
        examples: with the answers expected.
        max_tokens: length of the answer region.
        options: of decoding; default block 16, one token a step.
    """
    is_right: dict[tuple[str, int], list[bool]] = defaultdict(list)
    wrong = []
    for example in examples:
        given = answer(model, tokenizer, example, max_tokens=max_tokens, options=options)
        is_right[example.operation, len(example.words)].append(given == example.answer)
        if given != example.answer:
            wrong.append((example, given))
    flat = [one for kind in is_right.values() for one in kind]
    return Score(
        num_right=sum(flat),
        num_examples=len(flat),
        by_kind={kind: sum(values) / len(values) for kind, values in is_right.items()},
        wrong=wrong,
    )
