"""What an ablation measured: points of curves or bars, kept as JSON to be drawn again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.evaluate.figures import Evaluation

if TYPE_CHECKING:
    from vllm import LLM

Kind = Literal["quality", "steps", "merge", "eos"]
StartEngine = Callable[[Path], AbstractContextManager["LLM"]]
"""Starts the engine on a checkpoint, and stops it at the end."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One setting and what was measured with it."""

    series: str
    """What it is a point of: a curve of the plot, or a row of the table."""

    evaluation: Evaluation

    x: float | None = None
    """What was varied; None where the series is one point."""


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """An ablation."""

    kind: Kind
    command: str
    """What was typed."""

    points: list[Point]


def measured(point: Point, task: Task, name: str) -> float | None:
    """A figure of a point; None where the direction was not measured or has no such figure."""
    try:
        return point.evaluation.direction(task).figure(name).value
    except KeyError:
        return None


def save(sweep: Sweep, path: Path) -> None:
    """Write it as JSON."""
    text = msgspec.json.format(msgspec.json.encode(sweep), indent=1).decode()
    path.write_text(text + "\n", encoding="utf-8")


def load(path: Path) -> Sweep:
    """Read what `save` wrote.

    Raises:
        ValueError: it is something else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Sweep)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is not the result of an ablation: {error}") from error
