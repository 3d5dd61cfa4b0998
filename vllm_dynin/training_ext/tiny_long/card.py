"""The model card, written by the run it describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from vllm_dynin.training_ext.tiny_long.evaluate import BLOCK, CANVAS, Answered, share_right
from vllm_dynin.training_ext.tiny_long.recipe import TinyLong
from vllm_dynin.training_ext.tiny_long.tasks import TASKS

_TEXT = """\
# tiny-long

A masked-diffusion text model of about one million parameters whose answers are {shortest} to
{longest} tokens long and depend on themselves: a yardstick for decoding several tokens a step. It
is a checkpoint of the LLaDA family in the production format. It knows nothing but the five tasks
below, and says nothing about larger models.

- Made by `python -m vllm_dynin.training_ext tiny-long --out DIR --seed {seed} --steps {steps}`
  on one thread with torch {torch}: {seconds:.0f} s of processor time, perhaps on a shared core.
- Data: questions drawn from `vllm_dynin/training_ext/tiny_long/tasks.py`, which are our own. One
  key in ten (the set of words to sort, the digits of a sum, first number, step and direction of a
  count, the first five words of a chain, song and words of a recital) is never trained on.
- Licence: that of this repository.
- Stored in bfloat16; the figures below were measured on the stored weights, in float32.

Exact match on {num_questions} held-out questions (seed {question_seed}), greedy, canvas of {canvas}
slots, block {block}, one token a step: **{exact:.3f}**.

| task | tokens of an answer, with EOS | exact match |
| --- | --- | --- |
{rows}

One question of each:

{examples}
"""


def write_card(
    folder: Path,
    recipe: TinyLong,
    tokenizer: PreTrainedTokenizerFast,
    answers: Sequence[Answered],
    question_seed: int,
    seconds: float,
) -> None:
    """Write `README.md` into the checkpoint's folder.

    Args:
        folder: of the checkpoint.
        recipe: that made it.
        tokenizer: of the model.
        answers: to held-out questions.
        question_seed: they were drawn with.
        seconds: of processor time the training took.
    """
    lengths: dict[str, list[int]] = {task: [] for task in TASKS}
    examples = {}
    for one in answers:
        asked = one.question
        lengths[asked.task].append(len(tokenizer.encode(asked.answer)) + 1)
        examples[asked.task] = f"> {asked.messages[-1]['content']}\n>\n> {asked.answer}"
    every = [length for task in TASKS for length in lengths[task]]
    text = _TEXT.format(
        shortest=min(every),
        longest=max(every),
        seed=recipe.train.seed,
        steps=recipe.train.num_steps,
        torch=torch.__version__,
        seconds=seconds,
        num_questions=len(answers),
        question_seed=question_seed,
        canvas=CANVAS,
        block=BLOCK,
        exact=share_right(answers),
        rows="\n".join(
            f"| {task} | {min(lengths[task])} to {max(lengths[task])} "
            f"| {share_right(answers, task):.2f} |"
            for task in TASKS
        ),
        examples="\n\n".join(examples[task] for task in TASKS),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
