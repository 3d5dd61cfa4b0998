"""What each of several training processes runs: DDP, then FSDP2, in one process group.

Run by `test_training_ranks.py`, once for each rank, with the folder to write to.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.training_runs import plain, record, small_context, small_model, small_trainer
from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.data import TooManyBad
from vllm_dynin.training_ext.trainer import TrainConfig, Trainer
from vllm_dynin.training_ext.trainer.checkpoints import whole_checkpoints
from vllm_dynin.training_ext.trainer.feed import DataFailed
from vllm_dynin.training_ext.trainer.parallel import whole
from vllm_dynin.training_ext.trainer.run import RunOptions, run
from vllm_dynin.training_ext.trainer.validation import Validator

SETTINGS = {"num_steps": 3, "seed": 3, "learning_rate": 1e-3, "num_warmup_steps": 1}
MODES = {
    "ddp": {"num_micro_batches": 2},
    "fsdp2": {"num_micro_batches": 2, "sharding": "fsdp2", "ema_decay": 0.9},
    "fsdp2_bf16": {"sharding": "fsdp2", "precision": "bf16", "is_activation_checkpointed": True},
}


def check_answers(trainer: Trainer, weights: dict[str, Tensor]) -> None:
    """Validation with shards answers as the same weights do in one piece."""
    task = Task.TEXT_TO_IMAGE
    held_out = Validator(
        {task: [record(task, 0)]}, small_context(trainer.model.config), num_generated=1, steps=2
    )
    assert set(held_out.likelihood(trainer)) > {"validation/nll/t2i"}
    (found,) = held_out.generate(trainer)
    plain = small_model()
    dtype = torch.bfloat16 if trainer.config.precision == "bf16" else torch.float32
    plain.load_state_dict(weights)
    (expected,) = held_out.answers(plain.to(dtype))
    assert found == expected, (found, expected)


def one_run(folder: Path, mode: str) -> Trainer:
    """Train; with shards also save half way, and go on from there in a second trainer."""
    config = TrainConfig(**SETTINGS, **MODES[mode])
    trainer = small_trainer(config, rows=4)
    reports = []
    path = None
    for report in trainer.steps():
        reports.append(plain(report.scalars()))
        if mode == "fsdp2" and report.step == 2:
            path = trainer.save(folder / mode)
    # Nobody but DDP itself keeps the copies of the ranks equal, so every rank tells its own.
    weights = {name: whole(w.detach()).clone() for name, w in trainer.model.named_parameters()}
    save_file(weights, folder / f"{mode}-{trainer.parallel.rank}.safetensors")
    local = sum(p.to_local().numel() if mode != "ddp" else p.numel()
                for p in trainer.model.parameters())  # fmt: skip
    if mode != "ddp":
        check_answers(trainer, weights)
    if path is not None:
        again = small_trainer(config, rows=4, seed=8)
        again.resume(path)
        rest = [report.scalars() for report in again.steps()]
        resumed = {name: whole(w.detach()).clone() for name, w in again.model.named_parameters()}
        assert again.average is not None
        save_file(resumed, folder / f"{mode}-resumed-{trainer.parallel.rank}.safetensors")
        assert [plain(r) for r in rest] == reports[2:]
    values = {"reports": reports, "num_local": local, "config": asdict(config)}
    (folder / f"{mode}-{trainer.parallel.rank}.json").write_text(json.dumps(values))
    return trainer


def check_bad_data(folder: Path) -> None:
    """One rank's data fail in step 3: both end there, with a checkpoint of step 2."""
    trainer = small_trainer(TrainConfig(**SETTINGS, sharding="fsdp2"), rows=4)
    draw, is_failing = trainer.feed.mixture.next_step, trainer.parallel.rank == 1

    def next_step():
        if trainer.step == 2 and is_failing:
            raise TooManyBad("rank 1 has too many bad samples")
        return draw()

    trainer.feed.mixture.next_step = next_step
    try:
        run(trainer, folder / "bad", RunOptions())
    except DataFailed as error:
        assert str(error) == "rank 1 has too many bad samples"
    else:
        raise AssertionError("the run went on")
    assert [path.name for path in whole_checkpoints(folder / "bad" / "checkpoints")] == [
        "step-00000002"
    ]


if __name__ == "__main__":
    for name in MODES:
        last = one_run(Path(sys.argv[1]), name)
    check_bad_data(Path(sys.argv[1]))
    last.parallel.close()
