"""An evaluation as a table, for a terminal and for documentation."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.evaluate.figures import Comparison, Evaluation, Figure

NAMES: dict[Task, str] = {
    Task.TEXT_TO_TEXT: "text → text",
    Task.IMAGE_TO_TEXT: "image → text",
    Task.VIDEO_TO_TEXT: "video → text",
    Task.SPEECH_TO_TEXT: "speech → text",
    Task.TEXT_TO_SPEECH: "text → speech",
    Task.TEXT_TO_IMAGE: "text → image",
    Task.IMAGE_TO_IMAGE: "image → image",
}
HEADER = (
    *("direction", "figure", "value", "bar", "baseline", "ceiling"),
    *("ended", "steps", "tokens/forward"),
)


def rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """One row a figure, in the order of `HEADER`; what belongs to a direction stands once."""
    found: list[tuple[str, ...]] = []
    for direction in evaluation.directions:
        for number, figure in enumerate(direction.figures):
            first = number == 0
            can_end = direction.task not in (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE)
            found.append(
                (
                    f"{NAMES[direction.task]} ({direction.num_questions})" if first else "",
                    figure.name,
                    value(figure),
                    bar(figure),
                    compared(figure.baseline),
                    compared(figure.ceiling),
                    f"{direction.ended:.2f}" if first and can_end else "",
                    f"{direction.steps:.1f}" if first else "",
                    f"{direction.tokens_per_forward:.2f}" if first else "",
                )
            )
    return found


def summary(evaluation: Evaluation) -> str:
    """How much was answered, and how fast, in a line."""
    answers, seconds = evaluation.num_answers, evaluation.engine_seconds
    tokens, forwards = evaluation.num_tokens, evaluation.num_forwards
    return (
        f"{answers} answers of {tokens} tokens in {seconds:.1f} s of the engine: "
        f"{answers / seconds:.1f} answers/s, {tokens / seconds:.0f} tokens/s, "
        f"{tokens / forwards:.2f} tokens per forward"
    )


def value(figure: Figure) -> str:
    """The value, with the lowest and highest of the seeds where there are several."""
    if len(figure.by_seed) == 1:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} ({min(figure.by_seed):.3f}–{max(figure.by_seed):.3f})"


def bar(figure: Figure) -> str:
    """The bar, and whether it is reached; empty without one."""
    if figure.bar is None:
        return ""
    sign = "≤" if figure.is_lower_better else "≥"
    return f"{sign} {figure.bar:.2f} {'reached' if figure.is_reached else 'missed'}"


def compared(comparison: Comparison | None) -> str:
    """A baseline or ceiling, empty where there is none."""
    return "" if comparison is None else f"{comparison.value:.3f} {comparison.name}"


def plain(header: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, for a terminal."""
    lines = [header, *table]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown(header: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    """The same as a table of Markdown."""
    lines = [header, ["---"] * len(header), *table]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
