"""Measuring several checkpoints of one run, one after the other, with the same judges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vllm_dynin.api import checkpoint_of
from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.evaluate.ablations.codecs import with_codecs
from vllm_dynin.training_ext.evaluate.ablations.sweep import StartEngine
from vllm_dynin.training_ext.evaluate.bench import Bench
from vllm_dynin.training_ext.evaluate.figures import Evaluation
from vllm_dynin.training_ext.evaluate.measure import directions_of, evaluate
from vllm_dynin.training_ext.evaluate.questions import Settings


class Measurer:
    """Measures one checkpoint after another with the same judges.

    The judges are made with the codecs of the first, which has to have all of them.

    Args:
        start: starts the engine.
        settings: of decoding.
        limit: questions of each direction and seed.
        seeds: of the questions.
        codecs: folder of a checkpoint whose codecs are used where one has none; None where each
            has its own.
    """

    def __init__(
        self,
        start: StartEngine,
        settings: Settings,
        limit: int,
        seeds: Sequence[int],
        codecs: Path | None = None,
    ) -> None:
        self._start, self._limit, self._seeds = start, limit, seeds
        self._settings = settings
        self._bench: Bench | None = None
        self._codecs = codecs

    def __call__(self, folder: Path, tasks: Sequence[Task]) -> Evaluation:
        """Measure those of these directions that a checkpoint has.

        Args:
            folder: of the checkpoint.
            tasks: the directions.
        """
        with with_codecs(folder, self._codecs) as complete, self._start(complete) as llm:
            checkpoint = checkpoint_of(llm)
            has = directions_of(checkpoint.config)
            self._bench = self._bench or Bench(checkpoint)
            return evaluate(
                llm,
                directions=[task for task in tasks if task in has],
                limit=self._limit,
                seeds=self._seeds,
                settings=self._settings,
                bench=self._bench,
            )
