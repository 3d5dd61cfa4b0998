"""What one training step spends where, at the size of a model that trains on one core.

Processor time of the parts of a step of all seven directions, padded and packed, one after the
other in the same process. What is neither forward nor backward is the price of the loop.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from vllm_dynin.canvas import Task
from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.processors.text_tokenizer import TextTokenizer
from vllm_dynin.processors.train_tokenizer import train_tokenizer
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.tokens import NUM_CONTROL_TOKENS
from vllm_dynin.training_ext.directions import objectives
from vllm_dynin.training_ext.initialise import initialise
from vllm_dynin.training_ext.records import Record, SampleContext, sample_policies
from vllm_dynin.training_ext.trainer import MemoryMixture, RecordFeed, TrainConfig, Trainer

WORDS = ("red", "blue", "cube", "cat", "seven", "left", "turn", "say", "describe", "the", "picture")
TASKS = (
    Task.TEXT_TO_TEXT,
    Task.IMAGE_TO_TEXT,
    Task.VIDEO_TO_TEXT,
    Task.SPEECH_TO_TEXT,
    Task.TEXT_TO_SPEECH,
    Task.TEXT_TO_IMAGE,
    Task.IMAGE_TO_IMAGE,
)


def make_record(task: Task, rng: random.Random) -> Record:
    """A record with 16 image codes, 4 × 4 frame codes or 8 to 24 units, and a few words."""

    def codes(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(16) for _ in range(count))

    def words(most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))

    fields: dict[str, Any] = {"text": words(6)}
    if task in (Task.IMAGE_TO_TEXT, Task.IMAGE_TO_IMAGE):
        fields["images"] = (codes(16),)
    if task is Task.VIDEO_TO_TEXT:
        fields["images"] = tuple(codes(4) for _ in range(4))
    if task in (Task.SPEECH_TO_TEXT, Task.TEXT_TO_SPEECH):
        fields["units"] = codes(rng.randint(8, 24))
    if task in (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE):
        fields["target_image"] = codes(16)
    elif task is not Task.TEXT_TO_SPEECH:
        fields["answer"] = words(4)
    return Record(task=task, **fields)


def make_trainer(tokenizer: TextTokenizer, num_steps: int, *, is_packed: bool) -> Trainer:
    """Hidden width 160, five blocks, sixteen rows of each direction."""
    config = DyninOmniConfig(
        text_vocab_size=len(tokenizer),
        d_model=160,
        n_heads=5,
        n_layers=5,
        mlp_hidden_size=432,
        rope_theta=50.0,
        image_codebook_size=16,
        speech_codebook_size=64,
        image_text_block=33,
        speech_text_block=96,
    )
    model = LLaDA(config)
    initialise(model, 0)
    train = TrainConfig(num_steps=num_steps, num_warmup_steps=1, is_packed=is_packed)
    rng = random.Random(0)
    records = {task: [make_record(task, rng) for _ in range(200)] for task in TASKS}
    context = SampleContext(config=config, tokenizer=tokenizer, policies=sample_policies())
    feed = RecordFeed(MemoryMixture(records, dict.fromkeys(TASKS, 16)), context, train)
    return Trainer(model, feed, objectives(), train)


def measure(trainer: Trainer) -> tuple[dict[str, float], int]:
    """Median processor milliseconds of each part, and positions of the last step."""
    spent: dict[str, list[float]] = defaultdict(list)

    def timed(owner: Any, name: str, label: str) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            result = call(*args, **kwargs)
            spent[label].append(1e3 * (time.process_time() - started))
            return result

        setattr(owner, name, wrapped)

    timed(trainer.feed, "next_step", "lay out records")
    timed(trainer, "_noise", "noise and weights")
    timed(trainer, "forward", "forward")
    timed(trainer.parallel, "backward", "backward")
    timed(trainer.parallel, "clip", "clip")
    timed(trainer.optimizer, "step", "AdamW")
    timed(trainer, "_one_step", "whole step")
    for report in trainer.steps():
        positions = report.num_positions
    return {label: statistics.median(values) for label, values in spent.items()}, positions


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    tokenizer = train_tokenizer([" ".join(WORDS)] * 4, 300)
    assert len(tokenizer) == 300 + NUM_CONTROL_TOKENS
    for is_packed in (False, True):
        parts, positions = measure(make_trainer(tokenizer, steps, is_packed=is_packed))
        whole = parts.pop("whole step")
        model = parts["forward"] + parts["backward"]
        print(
            f"{'packed' if is_packed else 'padded'}: {positions} positions, {whole:.0f} ms a step"
        )
        for label, value in parts.items():
            print(f"  {label:18} {value:7.1f} ms  {value / whole:6.1%}")
        print(f"  {'rest of the loop':18} {whole - sum(parts.values()):7.1f} ms")
        print(f"  not the model      {(whole - model) / whole:17.1%}")


if __name__ == "__main__":
    main()
