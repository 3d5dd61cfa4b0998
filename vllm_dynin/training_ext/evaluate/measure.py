"""Ask an engine every question, judge the answers, and put the figures together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from vllm_dynin.api import Result, checkpoint_of, generate
from vllm_dynin.canvas import Task
from vllm_dynin.config import DyninOmniConfig, LLaDAConfig, MMadaConfig
from vllm_dynin.training_ext.evaluate import score_media, score_text
from vllm_dynin.training_ext.evaluate.bench import Bench
from vllm_dynin.training_ext.evaluate.figures import (
    HEADLINE,
    DirectionFigures,
    Evaluation,
    Measured,
    Sample,
    combine,
)
from vllm_dynin.training_ext.evaluate.questions import Question, Settings, ask

if TYPE_CHECKING:
    from vllm import LLM

NUM_SAMPLES = 3
"""Answers of each direction that are kept for a look, wrong ones first."""

Scorer = Callable[[Sequence[Question], Sequence[Result], Bench], list[Measured]]

_SCORERS: dict[Task, Scorer] = {
    Task.TEXT_TO_TEXT: lambda questions, results, _: score_text.score_text(questions, results),
    Task.IMAGE_TO_TEXT: score_text.score_image,
    Task.VIDEO_TO_TEXT: score_text.score_video,
    Task.SPEECH_TO_TEXT: score_text.score_recording,
    Task.TEXT_TO_SPEECH: score_media.score_speech,
    Task.TEXT_TO_IMAGE: score_media.score_drawing,
    Task.IMAGE_TO_IMAGE: score_media.score_edit,
}


def directions_of(config: LLaDAConfig) -> tuple[Task, ...]:
    """The measured directions that a model of this kind has."""
    speech = (Task.SPEECH_TO_TEXT, Task.TEXT_TO_SPEECH)
    if isinstance(config, DyninOmniConfig):
        return tuple(HEADLINE)
    if isinstance(config, MMadaConfig):
        return tuple(t for t in HEADLINE if t not in (*speech, Task.VIDEO_TO_TEXT))
    return (Task.TEXT_TO_TEXT,)


def evaluate(
    llm: LLM,
    *,
    directions: Sequence[Task] | None = None,
    limit: int = 100,
    seeds: Sequence[int] = (0,),
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    use_tqdm: bool = True,
    bench: Bench | None = None,
) -> Evaluation:
    """Measure a checkpoint through the engine that serves it.

    All questions of one seed go to the engine in one batch, whatever their directions.

    Args:
        llm: the engine.
        directions: what to measure; None is everything the model has.
        limit: questions of each direction and seed, at most.
        seeds: of the questions and the answers, one round each.
        settings: of decoding.
        use_tqdm: show progress bars.
        bench: judges to use again, for another checkpoint with the same codecs or other settings.

    Raises:
        ValueError: a direction the model lacks, no seed, or a judge is not installed.
    """
    checkpoint = checkpoint_of(llm)
    has = directions_of(checkpoint.config)
    tasks = tuple(has if directions is None else directions)
    for task in tasks:
        if task not in has:
            raise ValueError(
                f"direction {task.value!r} of a checkpoint of model_type "
                f"{checkpoint.config.model_type!r}; it has {', '.join(t.value for t in has)}"
            )
    if not seeds or not tasks:
        raise ValueError(f"seeds {list(seeds)}, directions {list(tasks)}: give at least one each")
    bench = bench or Bench(checkpoint)
    if {Task.TEXT_TO_SPEECH, Task.SPEECH_TO_TEXT} & set(tasks):
        _ = bench.listeners  # missing judges are told before anything is run
    rounds = [_round(llm, tasks, limit, seed, settings, use_tqdm) for seed in seeds]
    bar = tqdm(tasks, desc="Judging answers", disable=not use_tqdm)
    found = [_direction(task, [asked[task] for asked in rounds], bench) for task in bar]
    return _evaluation(llm, seeds, rounds, found)


_Asked = dict[Task, tuple[list[Question], list[Result]]]


def _round(
    llm: LLM, tasks: Sequence[Task], limit: int, seed: int, settings: Settings, use_tqdm: bool
) -> _Asked:
    """Questions and answers of one seed."""
    asked = {task: ask(task, limit, seed, settings) for task in tasks}
    requests = [question.request for task in tasks for question in asked[task]]
    results = iter(generate(llm, requests, use_tqdm=use_tqdm))
    return {
        task: (questions, [next(results) for _ in questions]) for task, questions in asked.items()
    }


def _evaluation(
    llm: LLM,
    seeds: Sequence[int],
    rounds: Sequence[_Asked],
    directions: list[DirectionFigures],
) -> Evaluation:
    import vllm

    model = llm.llm_engine.vllm_config.model_config
    results = [result for asked in rounds for _, own in asked.values() for result in own]
    return Evaluation(
        checkpoint=Path(model.model).name,
        seeds=list(seeds),
        vllm=vllm.__version__,
        dtype=str(model.dtype).removeprefix("torch."),
        engine_seconds=sum(_seconds(asked) for asked in rounds),
        num_answers=len(results),
        num_tokens=sum(len(result.token_ids) for result in results),
        num_forwards=sum(result.report.forwards for result in results if result.report),
        directions=directions,
    )


def _seconds(asked: _Asked) -> float:
    """The longest time a request of a batch took, from arrival to its end."""
    reports = [result.report for _, results in asked.values() for result in results]
    return max(report.queue_seconds + report.run_seconds for report in reports if report)


def _direction(
    task: Task, rounds: Sequence[tuple[list[Question], list[Result]]], bench: Bench
) -> DirectionFigures:
    measured = [_SCORERS[task](questions, results, bench) for questions, results in rounds]
    results = [result for _, own in rounds for result in own]
    reports = [result.report for result in results if result.report is not None]
    return DirectionFigures(
        task=task,
        num_questions=_num_questions(rounds[0][0]),
        figures=combine(task, measured),
        ended=sum(result.finish_reason == "stop" for result in results) / len(results),
        steps=sum(report.steps for report in reports) / len(reports),
        tokens_per_forward=sum(len(result.token_ids) for result in results)
        / sum(report.forwards for report in reports),
        samples=_samples(rounds[0]),
    )


def _num_questions(questions: Sequence[Question]) -> int:
    """Of one variant."""
    return sum(question.variant == questions[0].variant for question in questions)


def _samples(asked: tuple[list[Question], list[Result]]) -> list[Sample]:
    """Some answers, the wrong ones first; media are told by their length."""
    found = [
        Sample(asked=question.asked, expected=question.expected, answered=_shown(result))
        for question, result in zip(*asked, strict=True)
    ]
    return sorted(found, key=lambda sample: sample.answered == sample.expected)[:NUM_SAMPLES]


def _shown(result: Result) -> str:
    if result.text is not None:
        return result.text
    if result.audio is not None:
        return f"({len(result.token_ids)} units, {result.audio.seconds:.2f} s)"
    return f"({len(result.token_ids)} codes)"
