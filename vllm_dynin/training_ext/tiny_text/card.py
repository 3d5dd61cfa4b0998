"""The model card, written by the run it describes."""

from __future__ import annotations

from pathlib import Path

import torch

from vllm_dynin.training_ext.tiny_text.evaluate import Score
from vllm_dynin.training_ext.tiny_text.recipe import TinyText
from vllm_dynin.training_ext.tiny_text.tasks import WORDS

_TEXT = """\
# tiny-text

A masked-diffusion text model of about one million parameters that copies, reverses and
alphabetically sorts one to four of {num_words} English words, asked for in a chat. It is a
checkpoint of the LLaDA family in the production format, made so that serving can be tried and
tested without the 8B weights. It knows nothing else, and says nothing about larger models.

- Made by `python -m vllm_dynin.training_ext tiny-text --out DIR --seed {seed} --steps {steps}`
  on one thread with torch {torch}: {seconds:.0f} s of processor time, perhaps on a shared core.
- Data: prompts and answers drawn from the phrases and words in
  `vllm_dynin/training_ext/tiny_text/tasks.py`, which are our own. One set of words in ten is never
  trained on, in any order.
- Licence: that of this repository.
- Stored in bfloat16; the figures below were measured on the stored weights, in float32.

Exact match on {num_examples} prompts with unseen combinations of words, greedy, block 16, one token
a step, 16 tokens: **{exact:.3f}**.

| operation | words | exact match |
| --- | --- | --- |
{rows}
"""


def write_card(folder: Path, recipe: TinyText, score: Score, seconds: float) -> None:
    """Write `README.md` into the checkpoint's folder.

    Args:
        folder: of the checkpoint.
        recipe: that made it.
        score: on held-out examples.
        seconds: of processor time the training took.
    """
    rows = [
        f"| {operation} | {num_words} | {share:.2f} |"
        for (operation, num_words), share in score.by_kind.items()
    ]
    text = _TEXT.format(
        num_words=len(WORDS),
        seed=recipe.train.seed,
        steps=recipe.train.num_steps,
        torch=torch.__version__,
        seconds=seconds,
        num_examples=score.num_examples,
        exact=score.exact_match,
        rows="\n".join(rows),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
