"""Part 1: a trained text model answers prompts it has not seen."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from vllm_dynin.entrypoints.demo.engine import engine

CHECKPOINT = Path(__file__).parents[2] / "assets" / "tiny-text"
"""The trained model that ships with the package."""

_PER_KIND = 2  # of each operation and number of words: 24 prompts
_MAX_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question and what came of it."""

    question: str
    answer: str
    expected: str

    @property
    def is_right(self) -> bool:
        """Whether the answer is the expected one to the letter."""
        return self.answer.strip() == self.expected


@dataclass(frozen=True, kw_only=True)
class TextResults:
    """What part 1 shows.

    Args:
        answers: to all questions.
        fills: one answer as it filled in, a line a step.
        start_seconds: of the engine.
        seconds: from the first prompt to the last answer.
        tokens: of all answers.
        forwards: of all answers.
    """

    answers: list[Answer]
    fills: list[str]
    start_seconds: float
    seconds: float
    tokens: int
    forwards: int

    @property
    def num_right(self) -> int:
        """Answers that are right to the letter."""
        return sum(answer.is_right for answer in self.answers)

    def lines(self) -> list[str]:
        """The results as text for a terminal."""
        width = max(len(answer.question) for answer in self.answers)
        expected = max(len(answer.expected) for answer in self.answers)
        shown = [
            f"  {'✓' if answer.is_right else '✗'} {answer.question:{width}}  "
            f"{answer.answer.strip():{expected}}"
            + ("" if answer.is_right else f"  expected: {answer.expected}")
            for answer in self.answers
        ]
        return [
            *shown,
            "",
            "  One answer as it filled in, a line a denoising step (· is a masked token):",
            *[f"    {line}" for line in self.fills],
            "",
            f"  {self.num_right} of {len(self.answers)} right to the letter; {self.tokens} tokens "
            f"in {self.forwards} forwards ({self.tokens / self.forwards:.2f} tokens a forward), "
            f"{self.tokens / self.seconds:.0f} tokens/s with {len(self.answers)} requests at once",
        ]


def run(checkpoint: Path = CHECKPOINT) -> TextResults:
    """Answer held-out prompts, all at once."""
    from vllm_dynin.api import generate
    from vllm_dynin.requests import Chat
    from vllm_dynin.sampling.params import DenoiseParams
    from vllm_dynin.training_ext.tiny_text.tasks import held_out_examples

    examples = list(held_out_examples(seed=1, per_kind=_PER_KIND))
    # Half as many steps as tokens: two tokens a forward.
    options = DenoiseParams(steps=_MAX_TOKENS // 2, block_length=_MAX_TOKENS)
    requests = [
        Chat(
            example.messages,
            options=options,
            max_tokens=_MAX_TOKENS,
            trajectory=index == len(examples) // 2,
        )
        for index, example in enumerate(examples)
    ]
    with engine(checkpoint, max_num_seqs=len(requests), block_size=32) as (llm, start_seconds):
        started = time.monotonic()
        results = generate(llm, requests)
        seconds = time.monotonic() - started
        tokenizer = llm.get_tokenizer()
        shown = next(result.trajectory for result in results if result.trajectory is not None)
        fills = [
            shown.text(step, lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
            for step in range(shown.num_steps + 1)
        ]
    return TextResults(
        answers=[
            Answer(
                question=example.messages[-1]["content"],
                answer=result.text or "",
                expected=example.answer,
            )
            for example, result in zip(examples, results, strict=True)
        ],
        fills=fills,
        start_seconds=start_seconds,
        seconds=seconds,
        tokens=sum(len(result.token_ids) for result in results),
        forwards=sum(result.report.forwards for result in results if result.report is not None),
    )
