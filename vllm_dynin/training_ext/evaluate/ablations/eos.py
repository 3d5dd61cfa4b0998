"""What stage 1 teaches with and without end tokens in its loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vllm_dynin.training_ext.evaluate.ablations.measurer import Measurer
from vllm_dynin.training_ext.evaluate.ablations.merging import NEW_SKILLS
from vllm_dynin.training_ext.evaluate.ablations.sweep import Point, StartEngine
from vllm_dynin.training_ext.evaluate.questions import Settings

WITHOUT, SUPERVISED = "without EOS", "with EOS"


def sweep_eos(
    start: StartEngine,
    without: Path,
    supervised: Path,
    *,
    settings: Settings,
    limit: int,
    seeds: Sequence[int],
    codecs: Path | None = None,
) -> list[Point]:
    """Measure what stage 1 taught without and with end tokens in its loss.

    Args:
        start: starts the engine.
        without: folder of a stage 1 that left end tokens out of the loss.
        supervised: folder of one that had them in it.
        settings: of decoding.
        limit: questions of each direction and seed.
        seeds: of the questions.
        codecs: folder of a checkpoint whose codecs are used; None where every one has its own.
    """
    measure = Measurer(start, settings, limit, seeds, codecs)
    return [
        Point(series=WITHOUT, evaluation=measure(without, NEW_SKILLS)),
        Point(series=SUPERVISED, evaluation=measure(supervised, NEW_SKILLS)),
    ]
