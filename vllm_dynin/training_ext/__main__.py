"""`python -m vllm_dynin.training_ext RECIPE …`: train a tiny model and write a checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vllm_dynin.reference.backbone import load_reference
from vllm_dynin.training_ext import small_text
from vllm_dynin.training_ext.tiny import card as omni_card
from vllm_dynin.training_ext.tiny import recipe as omni
from vllm_dynin.training_ext.tiny_long import card as long_card
from vllm_dynin.training_ext.tiny_long import evaluate as long_evaluate
from vllm_dynin.training_ext.tiny_long import recipe as long
from vllm_dynin.training_ext.tiny_long import tasks as long_tasks
from vllm_dynin.training_ext.tiny_text import card, evaluate, recipe, tasks
from vllm_dynin.training_ext.trainer import StepReport


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a recipe; the exit status is 2 for a bad argument."""
    parser = argparse.ArgumentParser(prog="python -m vllm_dynin.training_ext", description=__doc__)
    recipes = parser.add_subparsers(dest="recipe", required=True)
    for add in (_add_tiny_text, _add_tiny_long, _add_dynin_tiny):
        command = add(recipes)
        command.add_argument("--out", type=Path, required=True, help="folder to write; new")
        command.add_argument("--seed", type=int, default=0, help="default 0")
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except ValueError as error:
        parser.error(str(error))
    return 0


def _add_tiny_text(recipes: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = recipes.add_parser(
        "tiny-text", help="copies, reverses and sorts words; minutes on a core"
    )
    command.add_argument("--steps", type=int, default=recipe.tiny_text().train.num_steps)
    command.add_argument(
        "--per-kind", type=int, default=20, help="held-out examples of each kind at the end"
    )
    command.set_defaults(run=_tiny_text)
    return command


def _add_tiny_long(recipes: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = recipes.add_parser(
        "tiny-long",
        help="answers of 32 to 62 tokens that depend on each other; no settled recipe yet",
    )
    command.add_argument("--steps", type=int, default=long.tiny_long().train.num_steps)
    command.add_argument(
        "--per-task", type=int, default=20, help="held-out questions of each task at the end"
    )
    command.set_defaults(run=_tiny_long)
    return command


def _add_dynin_tiny(recipes: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = recipes.add_parser(
        "dynin-tiny", help="all seven directions, through all stages; a quarter of an hour"
    )
    command.add_argument(
        "--keep-phases", type=Path, help="folder for the checkpoints of all phases; new"
    )
    command.add_argument(
        "--length", type=float, default=1.0, help="factor on the steps of every phase (default 1)"
    )
    command.add_argument(
        "--stage1-eos", choices=("none", "first", "all"), default="none",
        help="which EOS stage 1 learns (default none)",
    )  # fmt: skip
    command.set_defaults(run=_dynin_tiny)
    return command


def _tiny_text(options: argparse.Namespace) -> None:
    _check_new(options.out)
    plan = recipe.tiny_text(seed=options.seed, num_steps=options.steps)
    with _bar(options.steps) as bar:
        model, tokenizer, seconds = recipe.run(plan, _shown_on(bar))
    small_text.save(options.out, model, tokenizer)
    model = load_reference(options.out, torch.float32)  # what is measured is what was written
    examples = tasks.held_out_examples(seed=1, per_kind=options.per_kind)
    score = evaluate.evaluate(model, tokenizer, examples, max_tokens=16)
    card.write_card(options.out, plan, score, seconds)
    print(
        f"{options.out}: {score.num_right} of {score.num_examples} held-out prompts right to the "
        f"letter; {seconds:.0f} s of processor time"
    )


def _tiny_long(options: argparse.Namespace) -> None:
    _check_new(options.out)
    plan = long.tiny_long(seed=options.seed, num_steps=options.steps)
    with _bar(options.steps) as bar:
        model, tokenizer, seconds = long.run(plan, _shown_on(bar))
    small_text.save(options.out, model, tokenizer)
    model = load_reference(options.out, torch.float32)  # what is measured is what was written
    questions = long_tasks.held_out(seed=1, per_task=options.per_task)
    answers = long_evaluate.evaluate(model, tokenizer, questions)
    long_card.write_card(options.out, plan, tokenizer, answers, 1, seconds)
    print(
        f"{options.out}: {sum(one.is_right for one in answers)} of {len(answers)} held-out "
        f"questions right to the letter; {seconds:.0f} s of processor time"
    )


def _check_new(folder: Path) -> None:
    if folder.exists():  # before minutes of training, not after
        raise ValueError(f"{folder} exists; choose another folder or remove it")


def _shown_on(bar: Any) -> Callable[[StepReport], None]:
    def show(report: StepReport) -> None:
        bar.set_postfix_str(f"loss {report.loss:.3f}", refresh=False)
        bar.update()

    return show


def _dynin_tiny(options: argparse.Namespace) -> None:
    plan = omni.dynin_tiny(seed=options.seed, length=options.length, stage1_eos=options.stage1_eos)
    with _bar(sum(phase.train.num_steps for phase in plan.phases.values())) as bar:

        def show(phase: str, report: StepReport) -> None:
            bar.set_postfix_str(f"{phase}, loss {report.loss:.3f}", refresh=False)
            bar.update()

        seconds = omni.run(plan, options.out, options.keep_phases, show)
    omni_card.write_card(options.out, plan, seconds)
    print(f"{options.out}: {seconds:.0f} s of processor time; now vllm-dynin eval {options.out}")


def _bar(num_steps: int) -> Any:
    return tqdm(total=num_steps, unit="step", file=sys.stderr, mininterval=1.0)


if __name__ == "__main__":
    sys.exit(main())
