"""`python -m vllm_dynin.training_ext RECIPE …`: train a model and write a checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from vllm_dynin.reference.backbone import load_reference
from vllm_dynin.training_ext.tiny_text.card import write_card
from vllm_dynin.training_ext.tiny_text.evaluate import evaluate
from vllm_dynin.training_ext.tiny_text.recipe import run, save, tiny_text
from vllm_dynin.training_ext.tiny_text.tasks import held_out_examples
from vllm_dynin.training_ext.trainer import StepReport


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a recipe; the exit status is 2 for a bad argument."""
    parser = argparse.ArgumentParser(prog="python -m vllm_dynin.training_ext", description=__doc__)
    recipes = parser.add_subparsers(dest="recipe", required=True)
    tiny = recipes.add_parser(
        "tiny-text", help="copies, reverses and sorts words; minutes on a core"
    )
    tiny.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    tiny.add_argument("--seed", type=int, default=0, help="default 0")
    tiny.add_argument("--steps", type=int, default=tiny_text().train.num_steps)
    tiny.add_argument(
        "--per-kind", type=int, default=20, help="held-out examples of each kind at the end"
    )
    options = parser.parse_args(arguments)
    if options.out.exists():  # before minutes of training, not after
        tiny.error(f"{options.out} exists; choose another folder or remove it")
    try:
        recipe = tiny_text(seed=options.seed, num_steps=options.steps)
    except ValueError as error:
        tiny.error(str(error))

    with tqdm(total=options.steps, unit="step", file=sys.stderr, mininterval=1.0) as bar:

        def show(report: StepReport) -> None:
            bar.set_postfix_str(f"loss {report.loss:.3f}", refresh=False)
            bar.update()

        model, tokenizer, seconds = run(recipe, show)
    save(options.out, model, tokenizer)
    model = load_reference(options.out, torch.float32)  # what is measured is what was written
    examples = held_out_examples(seed=1, per_kind=options.per_kind)
    score = evaluate(model, tokenizer, examples, max_tokens=16)
    write_card(options.out, recipe, score, seconds)
    print(
        f"{options.out}: {score.num_right} of {score.num_examples} held-out prompts right to the "
        f"letter; {seconds:.0f} s of processor time"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
