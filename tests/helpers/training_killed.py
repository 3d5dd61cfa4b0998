"""A run that stops for ever in the middle of its second save, to be killed there.

    python -m helpers.training_killed FOLDER

Waits where the checkpoint's files are written and not yet renamed, having said so in FOLDER/ready.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from helpers.training_runs import small_trainer
from vllm_dynin.training_ext.trainer import TrainConfig, checkpoints

SETTINGS = {"num_steps": 5, "seed": 3, "learning_rate": 1e-3, "num_warmup_steps": 1}


def main(folder: Path) -> None:
    trainer = small_trainer(TrainConfig(**SETTINGS))
    to_disk = checkpoints._to_disk

    def stop(path: Path) -> None:
        to_disk(path)
        if trainer.step == 4 and path.name == "state.json":
            (folder / "ready").write_text("in the middle of the second save")
            time.sleep(600)

    checkpoints._to_disk = stop
    for report in trainer.steps():
        if report.step % 2 == 0:
            trainer.save(folder / "checkpoints", keep=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
