"""Everything that decides a stage of training, but the model and the files of its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vllm_dynin.canvas import Parity, Task
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.processors.text_tokenizer import TextTokenizer
from vllm_dynin.training_ext.directions import DirectionObjective
from vllm_dynin.training_ext.records import SampleContext, SamplePolicy
from vllm_dynin.training_ext.trainer.config import TrainConfig

Variant = Literal["paper", "release"]
"""What the paper says, or what the released code and configuration files do."""


@dataclass(frozen=True, kw_only=True)
class StageTask:
    """One direction of a stage.

    Args:
        objective: masking, classes, normalisation, coefficient.
        policy: layout, lengths, EOS, dropout.
        sources: names of the data sets; each is drawn from in proportion to its size.
        million_pairs: pairs of all its sources; None where nothing says.
        share: of the sequences of a step, in proportion to the other directions' shares.
        rows: on each rank in a step it takes part in, instead of a share.
        every: takes part in every so many steps.
        phase: the first step it takes part in.
        resolution: pixels a side of its images, sources and targets, or of the frames.
        num_frames: frames of a video.
        max_seconds: of speech, or of a video; longer ones are cut by the release (the transcript
            is not), and left out otherwise.
        max_units: speech units of a row.

    Raises:
        ValueError: not exactly one of share and rows, or a number is out of range.
    """

    objective: DirectionObjective
    policy: SamplePolicy
    sources: tuple[str, ...] = ()
    million_pairs: float | None = None
    share: float | None = None
    rows: int | None = None
    every: int = 1
    phase: int = 0
    resolution: int | None = None
    num_frames: int | None = None
    max_seconds: float | None = None
    max_units: int | None = None

    def __post_init__(self) -> None:
        if (self.share is None) == (self.rows is None):
            raise ValueError(
                f"share={self.share} and rows={self.rows}: a direction has one of them, a share "
                "of the step's sequences or rows on each rank"
            )
        if not 0 <= self.phase < self.every:
            raise ValueError(f"every={self.every}, phase={self.phase}: 0 ≤ phase < every")
        names = (
            "share",
            "rows",
            "resolution",
            "num_frames",
            "max_seconds",
            "max_units",
            "million_pairs",
        )
        for name in names:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be above 0, or None")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A stage.

    Args:
        name: of the stage.
        variant: whose.
        starts_from: the checkpoint it starts from, in words.
        tasks: the directions it trains, in the order of `directions.TRAINED`.
        train: optimisation.
        global_batch: sequences of an optimiser step over all directions and ranks; for the
            release with its eight GPUs, alternating directions counted by their turns.
        num_gpus: GPUs it was run on.
        gpu_hours: what that took; None where nothing says.
        parity: of the samples, see `records.SampleContext`.
        has_even_seats: a step's sequences are shared out by the shares, as evenly as they go, see
            `data.Mixture`; else each is drawn.

    Raises:
        ValueError: there is no direction, or some have a share and others rows.
    """

    name: str
    variant: Variant
    starts_from: str
    tasks: Mapping[Task, StageTask]
    train: TrainConfig
    global_batch: int
    num_gpus: int
    gpu_hours: int | None = None
    parity: Parity = Parity.DEFAULT
    has_even_seats: bool = True

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(f"{self.name} has no direction; give at least one")
        if len({task.share is None for task in self.tasks.values()}) > 1:
            raise ValueError(f"{self.name} mixes shares and rows; use one kind for all directions")

    @property
    def objectives(self) -> dict[Task, DirectionObjective]:
        """Of each direction, for `losses`."""
        return {task: one.objective for task, one in self.tasks.items()}

    @property
    def policies(self) -> dict[Task, SamplePolicy]:
        """Of each direction, for `records.SampleContext`."""
        return {task: one.policy for task, one in self.tasks.items()}

    def context(self, config: LLaDAConfig, tokenizer: TextTokenizer) -> SampleContext:
        """What turns this stage's records into samples for a model.

        Args:
            config: of the model.
            tokenizer: of the model.
        """
        return SampleContext(
            config=config,
            tokenizer=tokenizer,
            policies=self.policies,
            parity=self.parity,
            keeps_padding=any(one.attention != "visible" for one in self.objectives.values()),
        )
