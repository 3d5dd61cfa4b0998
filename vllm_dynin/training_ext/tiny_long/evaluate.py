"""Exact match on questions the model has never seen, by the real decoding loop.

python -m vllm_dynin.training_ext.tiny_long.evaluate CHECKPOINT [--per-task 20] [--block 16]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from vllm_dynin.reference.backbone import LLaDA, load_reference
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.training_ext.small_text import answer
from vllm_dynin.training_ext.tiny_long.tasks import TASKS, Question, held_out

CANVAS = 96
"""Slots of the answer: the longest answers have 81 tokens and EOS."""
BLOCK = 16


@dataclass(frozen=True)
class Answered:
    """A question and what was answered."""

    question: Question
    given: str

    @property
    def is_right(self) -> bool:
        """Whether the answer is right to the letter."""
        return self.given == self.question.answer


def evaluate(
    model: LLaDA,
    tokenizer: PreTrainedTokenizerFast,
    questions: Iterable[Question],
    *,
    max_tokens: int = CANVAS,
    options: DenoiseParams | None = None,
) -> list[Answered]:
    """Answer questions, one after the other.

    Args:
        model: the reference model.
        tokenizer: its tokenizer.
        questions: with the answers expected.
        max_tokens: length of the answer region.
        options: of decoding; default block 16, one token a step.
    """
    options = options or DenoiseParams(block_length=BLOCK)
    return [
        Answered(asked, answer(model, tokenizer, asked, max_tokens=max_tokens, options=options))
        for asked in questions
    ]


def share_right(answers: Iterable[Answered], task: str | None = None) -> float:
    """Share of right answers, of one task or of all."""
    right = [one.is_right for one in answers if task in (None, one.question.task)]
    return sum(right) / len(right)


def main() -> None:
    """Print exact match by task, and the wrong answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--per-task", type=int, default=20, help="questions (default 20)")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--seed", type=int, default=1, help="of the questions (default 1)")
    parser.add_argument("--canvas", type=int, default=CANVAS, help=f"slots (default {CANVAS})")
    parser.add_argument("--block", type=int, default=BLOCK, help=f"slots (default {BLOCK})")
    parser.add_argument("--steps", type=int, help="denoising steps (default: one a slot)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    answers = evaluate(
        load_reference(given.checkpoint, torch.float32),
        PreTrainedTokenizerFast.from_pretrained(given.checkpoint),
        held_out(given.seed, given.per_task, tuple(given.tasks)),
        max_tokens=given.canvas,
        options=DenoiseParams(block_length=given.block, steps=given.steps),
    )
    for one in answers:
        if not one.is_right:
            print(f"asked    {one.question.messages[-1]['content']}")
            print(f"expected {one.question.answer}\ngiven    {one.given}\n")
    for task in given.tasks:
        print(f"{task:8} {share_right(answers, task):.2f}")
    print(
        f"all      {share_right(answers):.3f} of {len(answers)}, canvas {given.canvas}, block "
        f"{given.block}, {time.process_time() - started:.0f} s of processor time"
    )


if __name__ == "__main__":
    main()
