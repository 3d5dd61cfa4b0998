"""The plots of the ablations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.evaluate.ablations.merging import (
    BACKBONE,
    NEW_SKILLS,
    OLD_SKILLS,
    STAGE1,
)
from vllm_dynin.training_ext.evaluate.ablations.sweep import Point, Sweep, measured
from vllm_dynin.training_ext.evaluate.figures import HEADLINE
from vllm_dynin.training_ext.evaluate.table import NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (3.2, 2.6)  # inches of one panel
_DPI = 110


def plot(sweep: Sweep, path: Path) -> None:
    """Draw an ablation into a PNG file.

    Args:
        sweep: what was measured.
        path: of the file; an existing one is replaced.

    Raises:
        ValueError: matplotlib is not installed, or there is nothing to draw for this kind.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"{error}: plots need matplotlib; pip install matplotlib") from error
    if sweep.kind not in _DRAW:
        raise ValueError(f"an ablation of kind {sweep.kind!r} has no plot; {', '.join(_DRAW)} have")
    figure = Figure(layout="constrained")
    _DRAW[sweep.kind](figure, sweep.points)
    # Without the version of the library in it, the file changes only where the picture does.
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def _steps(figure: Figure, points: Sequence[Point]) -> None:
    """One panel for what should be high, one for error rates."""
    figure.set_size_inches(2.6 * _SIZE[0], 1.6 * _SIZE[1])
    shares, errors = figure.subplots(1, 2)
    xs = [point.x for point in points]
    for task, names in HEADLINE.items():
        for name in names:
            ys = [measured(point, task, name) for point in points]
            if any(y is not None for y in ys):
                panel = errors if name == "WER" else shares
                panel.plot(xs, ys, marker="o", label=f"{NAMES[task]}: {name}")
    for panel, label in ((shares, "share"), (errors, "word error rate")):
        _finish(panel, label)
        panel.set_xscale("log", base=2)
        panel.set_xlabel("tokens per denoising step")
        panel.set_xticks(xs, [f"{x:g}" for x in xs if x is not None])
    shares.set_ylim(0, 1.02)
    _legend(figure, [shares, errors])


def _merging(figure: Figure, points: Sequence[Point]) -> None:
    """A panel a skill: each strategy over the weight; the two ends as lines across."""
    skills = [*OLD_SKILLS, *NEW_SKILLS]
    figure.set_size_inches(3 * _SIZE[0], 2 * _SIZE[1])
    panels = list(figure.subplots(2, 3).ravel())
    for panel, task in zip(panels, skills, strict=True):
        name = HEADLINE[task][0]
        for series in dict.fromkeys(point.series for point in points):
            found = [(p.x, measured(p, task, name)) for p in points if p.series == series]
            if series in (BACKBONE, STAGE1):
                if found[0][1] is not None:
                    style = "--" if series == BACKBONE else ":"
                    panel.axhline(found[0][1], color="0.4", linestyle=style, label=series)
            else:
                panel.plot(*zip(*found, strict=True), marker="o", label=series)
        _finish(panel, name)
        panel.set_title(NAMES[task], fontsize=9)
        panel.set_xlabel("weight of the backbone")
        if name != "WER":
            panel.set_ylim(0, 1.02)
    _legend(figure, panels[:1])


def _eos(figure: Figure, points: Sequence[Point]) -> None:
    """Bars side by side: error rates and exact answers, and how many answers ended."""
    figure.set_size_inches(3 * _SIZE[0], 1.2 * _SIZE[1])
    values, ended = figure.subplots(1, 2)
    kinds: list[tuple[Task, str]] = [
        (Task.VIDEO_TO_TEXT, "digit"),
        (Task.VIDEO_TO_TEXT, "exact"),
        (Task.SPEECH_TO_TEXT, "WER"),
        (Task.TEXT_TO_SPEECH, "WER"),
    ]
    for number, point in enumerate(points):
        heights = [measured(point, task, name) or 0.0 for task, name in kinds]
        _bars(values, number, len(points), heights, point.series)
        stops = [direction.ended for direction in point.evaluation.directions]
        _bars(ended, number, len(points), stops, point.series)
    values.set_xticks(range(len(kinds)), [f"{NAMES[t]}\n{name}" for t, name in kinds], fontsize=6)
    tasks = [direction.task for direction in points[0].evaluation.directions]
    ended.set_xticks(range(len(tasks)), [NAMES[task] for task in tasks], fontsize=6)
    _finish(values, "figure")
    _finish(ended, "share of answers that ended")
    ended.set_ylim(0, 1.02)
    _legend(figure, [values])


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend below, with the entries of these panels, one after the other."""
    found = [panel.get_legend_handles_labels() for panel in panels]
    handles = [handle for own, _ in found for handle in own]
    labels = [label for _, own in found for label in own]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)


def _bars(panel: Axes, number: int, count: int, heights: Sequence[float], label: str) -> None:
    width = 0.8 / count
    places = [place + width * (number - (count - 1) / 2) for place in range(len(heights))]
    panel.bar(places, heights, width, label=label)


def _finish(panel: Axes, label: str) -> None:
    panel.set_ylim(bottom=0)
    panel.set_ylabel(label)
    panel.grid(alpha=0.3)
    panel.tick_params(labelsize=7)


_DRAW: dict[str, Callable[[Figure, Sequence[Point]], None]] = {
    "steps": _steps,
    "merge": _merging,
    "eos": _eos,
}
