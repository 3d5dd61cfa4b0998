"""Forgetting after stage 1 and its repair: merging strategies against the backbone's weight.

Source: the layout of the paper's Table 9 (arXiv:2604.00007v1, section 7.1).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.evaluate.ablations.measurer import Measurer
from vllm_dynin.training_ext.evaluate.ablations.sweep import Point, StartEngine
from vllm_dynin.training_ext.evaluate.questions import Settings
from vllm_dynin.training_ext.merge import STAGE1_CONTROLS, MergeOptions, Strategy, merge
from vllm_dynin.training_ext.vocab import CheckpointReader

OLD_SKILLS = (Task.TEXT_TO_TEXT, Task.IMAGE_TO_TEXT, Task.TEXT_TO_IMAGE)
"""What the backbone can do before stage 1."""
NEW_SKILLS = (Task.VIDEO_TO_TEXT, Task.SPEECH_TO_TEXT, Task.TEXT_TO_SPEECH)
"""What stage 1 adds."""
BACKBONE_WEIGHTS = (0.2, 0.4, 0.6, 0.8)
BACKBONE, STAGE1 = "backbone", "stage 1"


def sweep_merging(
    start: StartEngine,
    backbone: Path,
    stage1: Path,
    *,
    settings: Settings,
    limit: int,
    seeds: Sequence[int],
    codecs: Path | None = None,
    weights: Sequence[float] = BACKBONE_WEIGHTS,
    keeps_controls: bool = False,
) -> list[Point]:
    """Measure both checkpoints, and every merge of them.

    Args:
        start: starts the engine.
        backbone: folder of what stage 1 started from; measured on the old skills alone.
        stage1: folder of what came out.
        settings: of decoding.
        limit: questions of each direction and seed.
        seeds: of the questions.
        codecs: folder of a checkpoint whose codecs are used; None takes those of `stage1`.
        weights: of the backbone; x of the points.
        keeps_controls: take the control tokens that stage 1 introduced from it.

    Raises:
        ValueError: the two cannot be merged.
    """
    measure = Measurer(start, settings, limit, seeds, codecs or stage1)
    adapted = measure(stage1, (*OLD_SKILLS, *NEW_SKILLS))
    points = [
        Point(series=BACKBONE, evaluation=measure(backbone, OLD_SKILLS)),
        Point(series=STAGE1, evaluation=adapted),
    ]
    vocabulary = CheckpointReader(stage1).config.vocabulary
    controls = STAGE1_CONTROLS if keeps_controls else ()
    extra = tuple(int(getattr(vocabulary, name)) for name in controls)
    with tempfile.TemporaryDirectory(prefix="vllm-dynin-merge-") as folder:
        for strategy in Strategy:
            for weight in weights:
                merged = Path(folder) / f"{strategy}-{weight:g}"
                rule = MergeOptions(
                    strategy=strategy, backbone_weight=weight, extra_rows_from_stage1=extra
                )
                merge(backbone, stage1, merged, rule)
                found = measure(merged, (*OLD_SKILLS, *NEW_SKILLS))
                points.append(Point(series=strategy.value, x=weight, evaluation=found))
    return points
