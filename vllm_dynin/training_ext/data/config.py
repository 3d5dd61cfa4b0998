"""A mixture as a configuration, and opening it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.data.bad import MAX_BAD_SHARE, MAX_FILTERED_SHARE, BadLog
from vllm_dynin.training_ext.data.encode import Encoder
from vllm_dynin.training_ext.data.mixture import Mixture, Schedule, approximate_length
from vllm_dynin.training_ext.data.sources import (
    Measure,
    ShuffledSource,
    SourceSpec,
    open_records,
)


@dataclass(frozen=True, kw_only=True)
class TaskMix:
    """One direction of a mixture.

    Args:
        schedule: how much of it a step takes.
        sources: where it comes from.

    Raises:
        ValueError: there is no source.
    """

    schedule: Schedule
    sources: tuple[SourceSpec, ...]

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("a direction of a mixture needs at least one source")


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """All of a mixture.

    Args:
        tasks: the directions.
        seed: of every draw.
        max_bad_share: damaged samples allowed, as a share of each source.
        max_filtered_share: samples allowed that the run has no room or no use for, likewise.
        rows_per_step: see `Mixture`.
        is_even: see `Mixture`.
    """

    tasks: Mapping[Task, TaskMix]
    seed: int = 0
    max_bad_share: float = MAX_BAD_SHARE
    max_filtered_share: float = MAX_FILTERED_SHARE
    rows_per_step: int | None = None
    is_even: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MixtureConfig:
        """Read it from JSON or YAML values (docs/training-data.md has one).

        Args:
            values: the fields; a direction is `{"rows": …, "sources": [{"path": …}, …]}`, with the
                fields of `Schedule` and, in a source, of `SourceSpec`.

        Raises:
            ValueError: a field is unknown or out of range.
        """
        tasks = {}
        for name, mix in values.get("tasks", {}).items():
            try:
                task = Task(name)
            except ValueError as error:
                raise ValueError(
                    f"direction {name!r} is unknown; known are {', '.join(t.value for t in Task)}"
                ) from error
            schedule = {key: value for key, value in mix.items() if key != "sources"}
            tasks[task] = TaskMix(
                schedule=Schedule(**_known(Schedule, schedule)),
                sources=tuple(SourceSpec(**_known(SourceSpec, s)) for s in mix.get("sources", ())),
            )
        others = {key: value for key, value in values.items() if key != "tasks"}
        return cls(tasks=tasks, **_known(cls, others))


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = [field.name for field in fields(kind)]
    unknown = [name for name in values if name not in names]
    if unknown:
        raise ValueError(f"{kind.__name__} has no {unknown[0]!r}; it has {', '.join(names)}")
    return dict(values)


def open_mixture(
    config: MixtureConfig | Mapping[str, Any],
    *,
    rank: int = 0,
    world_size: int = 1,
    encoder: Encoder | None = None,
    measure: Measure = approximate_length,
) -> Mixture:
    """Open the sources of a mixture.

    Args:
        config: the mixture, or the values `MixtureConfig.from_dict` takes.
        rank: of this process.
        world_size: processes that train together.
        encoder: of media that are not codes yet; by default there must be none.
        measure: length of a record in tokens. One that lays the record out (`make_sample`) also
            keeps records that do not fit from the trainer.

    Raises:
        ValueError: a source is missing or empty, or the parts do not fit together.
    """
    if not isinstance(config, MixtureConfig):
        config = MixtureConfig.from_dict(config)
    encoder = Encoder() if encoder is None else encoder
    log = BadLog(config.max_bad_share, config.max_filtered_share)
    opened: dict[Task, list[tuple[ShuffledSource, float]]] = {}
    for task, mix in config.tasks.items():
        opened[task] = []
        for spec in mix.sources:
            source = ShuffledSource(
                open_records(spec, task, encoder),
                task,
                config.seed,
                log,
                measure,
                is_shuffled=spec.is_shuffled,
            )
            weight = float(source.size) if spec.weight is None else spec.weight
            opened[task].append((source, weight))
    return Mixture(
        opened,
        {task: mix.schedule for task, mix in config.tasks.items()},
        seed=config.seed,
        log=log,
        rank=rank,
        world_size=world_size,
        rows_per_step=config.rows_per_step,
        is_even=config.is_even,
    )
