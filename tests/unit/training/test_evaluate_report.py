"""Figures over seeds, their JSON, tables, plots and the page they are written to."""

from __future__ import annotations

import jsonschema
import msgspec
import pytest
from PIL import Image

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.evaluate import table
from vllm_dynin.training_ext.evaluate.ablations import page
from vllm_dynin.training_ext.evaluate.ablations.sweep import Point, Sweep, load, measured, save
from vllm_dynin.training_ext.evaluate.figures import (
    HEADLINE,
    Comparison,
    DirectionFigures,
    Evaluation,
    Measured,
    Sample,
    combine,
)


def of_seed(value: float, baseline: float) -> list[Measured]:
    copying = Comparison(name="copying", value=baseline)
    return [Measured(name="WER", value=value, baseline=copying), Measured(name="exact", value=0.5)]


def evaluation(tasks=tuple(HEADLINE), value: float = 0.25) -> Evaluation:
    return Evaluation(
        checkpoint="somewhere",
        seeds=[0, 1],
        vllm="0.32.0",
        dtype="float32",
        engine_seconds=2.0,
        num_answers=30,
        num_tokens=600,
        num_forwards=400,
        directions=[
            DirectionFigures(
                task=task,
                num_questions=10,
                figures=combine(
                    task,
                    [
                        [Measured(name=name, value=value + seed / 4) for name in HEADLINE[task]]
                        for seed in (0, 1)
                    ],
                ),
                ended=0.75,
                steps=4.0,
                tokens_per_forward=2.0,
                samples=[Sample(asked="a", expected="b", answered="c")],
            )
            for task in tasks
        ],
    )


def test_figures_are_means_over_seeds() -> None:
    rate, exact = combine(Task.TEXT_TO_SPEECH, [of_seed(0.1, 1.0), of_seed(0.3, 0.5)])
    assert rate.value == pytest.approx(0.2)
    assert rate.by_seed == [0.1, 0.3]
    assert rate.baseline == Comparison(name="copying", value=0.75)
    assert rate.is_lower_better and rate.bar == 0.20 and rate.is_reached
    assert exact.bar is None and exact.is_reached is None and not exact.is_lower_better


@pytest.mark.parametrize(
    ("task", "name", "value", "is_reached"),
    [
        (Task.SPEECH_TO_TEXT, "WER", 0.10, True),
        (Task.SPEECH_TO_TEXT, "WER", 0.11, False),
        (Task.TEXT_TO_TEXT, "exact", 0.90, True),
        (Task.TEXT_TO_TEXT, "exact", 0.89, False),
    ],
)
def test_bars(task, name, value, is_reached) -> None:
    (figure,) = combine(task, [[Measured(name=name, value=value)]])
    assert figure.is_reached is is_reached
    assert ("reached" in table.bar(figure)) is is_reached


def test_json_is_that_of_the_schema_and_comes_back() -> None:
    encoded = msgspec.json.encode([evaluation()])
    jsonschema.validate(
        msgspec.json.decode(encoded),
        msgspec.json.schema(list[Evaluation]),
        jsonschema.Draft202012Validator,
    )
    assert msgspec.json.decode(encoded, type=list[Evaluation]) == [evaluation()]


def test_table_has_a_row_for_each_figure() -> None:
    rows = table.rows(evaluation())
    assert len(rows) == sum(map(len, HEADLINE.values()))
    assert rows[0][:3] == ("text → text (10)", "exact", "0.375 (0.250–0.500)")
    lines = table.plain(table.HEADER, rows).splitlines()
    assert len({line.index("figure") for line in lines[:1]}) == 1
    assert all(line[len("direction") :] for line in lines)
    assert table.markdown(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_summary_is_in_answers_and_tokens_a_second() -> None:
    assert table.summary(evaluation()) == (
        "30 answers of 600 tokens in 2.0 s of the engine: 15.0 answers/s, 300 tokens/s, "
        "1.50 tokens per forward"
    )


def sweep(kind: str) -> Sweep:
    new = (Task.VIDEO_TO_TEXT, Task.SPEECH_TO_TEXT, Task.TEXT_TO_SPEECH)
    old = (Task.TEXT_TO_TEXT, Task.IMAGE_TO_TEXT, Task.TEXT_TO_IMAGE)
    points = {
        "quality": [Point(series="one", evaluation=evaluation())],
        "steps": [Point(series="steps", x=x, evaluation=evaluation(value=x / 8)) for x in (1, 2)],
        "merge": [
            Point(series="backbone", evaluation=evaluation(old)),
            Point(series="stage 1", evaluation=evaluation(old + new)),
            *(Point(series="shared", x=x, evaluation=evaluation(old + new)) for x in (0.4, 0.6)),
        ],
        "eos": [
            Point(series="without EOS", evaluation=evaluation(new)),
            Point(series="with EOS", evaluation=evaluation(new)),
        ],
    }
    return Sweep(kind=kind, command=f"vllm-dynin ablate {kind} …", points=points[kind])


@pytest.mark.parametrize("kind", ["quality", "steps", "merge", "eos"])
def test_page_gets_its_section_plot_and_json(kind, tmp_path) -> None:
    begin, end = page.markers(kind)
    path = tmp_path / "evaluation.md"
    path.write_text(f"before\n\n{begin}\nold\n{end}\n\nafter\n")
    page.write(sweep(kind), path)
    written = path.read_text()
    assert "old" not in written and written.startswith("before\n") and written.endswith("after\n")
    assert sweep(kind).command in written
    page.write(sweep(kind), path)
    assert path.read_text() == written  # a second time changes nothing
    assert load(tmp_path / "figures" / f"{kind}.json") == sweep(kind)
    picture = tmp_path / "figures" / f"{kind}.png"
    assert picture.exists() is (kind != "quality")
    if picture.exists():
        with Image.open(picture) as image:
            colours = image.convert("RGB").getcolors(1 << 20)
            assert image.width > 300 and len(colours) > 20  # lines or bars, not an empty frame


def test_page_without_markers_is_refused_and_left_alone(tmp_path) -> None:
    path = tmp_path / "page.md"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="needs the lines <!-- steps"):
        page.write(sweep("steps"), path)
    assert path.read_text() == "nothing"
    assert list(tmp_path.iterdir()) == [path]


def test_figures_that_were_not_measured_are_left_out(tmp_path) -> None:
    backbone = sweep("merge").points[0]
    assert measured(backbone, Task.TEXT_TO_TEXT, "exact") == pytest.approx(0.375)
    assert measured(backbone, Task.SPEECH_TO_TEXT, "WER") is None
    row = next(line for line in page.section(sweep("merge")).splitlines() if "backbone" in line)
    assert row.count("–") == 4  # digit and direction of videos, both error rates


def test_a_file_that_is_no_sweep_is_refused(tmp_path) -> None:
    path = tmp_path / "x.json"
    save(sweep("eos"), path)
    path.write_text(path.read_text().replace('"points"', '"dots"'))
    with pytest.raises(ValueError, match="not the result of an ablation"):
        load(path)
