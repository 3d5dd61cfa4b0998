"""The page of results: one section an ablation, replaced by the command that measures it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.evaluate import table
from vllm_dynin.training_ext.evaluate.ablations.merging import NEW_SKILLS, OLD_SKILLS
from vllm_dynin.training_ext.evaluate.ablations.plots import plot
from vllm_dynin.training_ext.evaluate.ablations.sweep import Kind, Point, Sweep, measured, save
from vllm_dynin.training_ext.evaluate.figures import HEADLINE

FIGURES = "figures"
"""Folder of plots and JSON beside the page."""

_HEADINGS: dict[Kind, str] = {
    "quality": "Quality",
    "steps": "Steps against quality",
    "merge": "Merging",
    "eos": "Stage 1 with and without EOS",
}


def write(sweep: Sweep, page: Path) -> None:
    """Replace a section of the page, with its plot and its JSON.

    Args:
        sweep: what was measured.
        page: Markdown with a pair of markers for this kind (`markers`), between which everything
            is replaced.

    Raises:
        ValueError: the page has no such markers.
    """
    begin, end = markers(sweep.kind)
    text = page.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{page} needs the lines {begin} and {end} once each, in this order")
    folder = page.parent / FIGURES
    folder.mkdir(exist_ok=True)
    save(sweep, folder / f"{sweep.kind}.json")
    if sweep.kind != "quality":
        plot(sweep, folder / f"{sweep.kind}.png")
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    page.write_text(pattern.sub(lambda _: section(sweep), text), encoding="utf-8")


def markers(kind: Kind) -> tuple[str, str]:
    """The lines around a section."""
    return f"<!-- {kind}: written by vllm-dynin -->", f"<!-- end of {kind} -->"


def section(sweep: Sweep) -> str:
    """The section in Markdown, markers included."""
    begin, end = markers(sweep.kind)
    first = sweep.points[0].evaluation
    counts = sorted({found.num_questions for found in first.directions})
    asked = "–".join(str(count) for count in {counts[0]: None, counts[-1]: None})
    note = (
        f"{asked} questions a direction and seed, seeds {', '.join(map(str, first.seeds))}; "
        f"vLLM {first.vllm}, {first.dtype}."
    )
    parts = [begin, f"    {sweep.command}", note, *_tables(sweep)]
    if sweep.kind != "quality":
        parts.append(f"![{_HEADINGS[sweep.kind]}]({FIGURES}/{sweep.kind}.png)")
    return "\n\n".join([*parts, end])


def _tables(sweep: Sweep) -> list[str]:
    if sweep.kind == "quality":
        found = []
        for point in sweep.points:
            rows = table.rows(point.evaluation)
            found += [f"**{point.series}**", table.markdown(table.HEADER, rows)]
        return found
    columns = _columns(sweep)
    header = ["setting", *(f"{table.NAMES[task]} {name}" for task, name in columns)]
    return [table.markdown(header, [_row(point, columns) for point in sweep.points])]


def _columns(sweep: Sweep) -> list[tuple[Task, str]]:
    """Direction and figure of each column."""
    if sweep.kind == "steps":
        return [(task, name) for task, names in HEADLINE.items() for name in names]
    if sweep.kind == "merge":
        skills = (*OLD_SKILLS, *NEW_SKILLS)
        return [(task, name) for task in skills for name in HEADLINE[task] if name != "unique"]
    found = [(task, name) for task in NEW_SKILLS for name in (*HEADLINE[task], "exact", "ended")]
    found.remove((Task.TEXT_TO_SPEECH, "exact"))  # what is heard has no letters to compare
    return found


def _row(point: Point, columns: Sequence[tuple[Task, str]]) -> list[str]:
    label = point.series if point.x is None else f"{point.series}, {point.x:g}"
    return [label, *(_cell(point, task, name) for task, name in columns)]


def _cell(point: Point, task: Task, name: str) -> str:
    if name == "ended":
        found = [d.ended for d in point.evaluation.directions if d.task == task]
        return f"{found[0]:.2f}" if found else "–"
    value = measured(point, task, name)
    return "–" if value is None else f"{value:.2f}"
