"""What a stage of the recipe says about its data: sizes of media, and whether a record fits."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.data.encode import EncodeOptions
from vllm_dynin.training_ext.data.sources import Measure
from vllm_dynin.training_ext.records import Record, SampleContext, draw, instructions, make_sample

if TYPE_CHECKING:  # stages import the trainer's settings, and the trainer imports this package
    from vllm_dynin.training_ext.stages import StageConfig


def stage_options(stage: StageConfig, task: Task) -> EncodeOptions:
    """Sizes and limits of a direction's media in a stage; what it does not say is serving's.

    Raises:
        ValueError: the stage does not train the direction.
    """
    if task not in stage.tasks:
        raise ValueError(
            f"{stage.name} does not train {task.value}; it trains "
            f"{', '.join(one.value for one in stage.tasks)}"
        )
    part, options = stage.tasks[task], EncodeOptions()
    if part.resolution is not None:
        options = replace(
            options,
            image_resolution=part.resolution,
            generation_resolution=part.resolution,
            edit_resolution=part.resolution,
            video_resolution=part.resolution,
        )
    if part.num_frames is not None:
        options = replace(options, video_frames=part.num_frames)
    if part.max_seconds is not None:
        if task is Task.VIDEO_TO_TEXT:
            options = replace(options, max_video_seconds=part.max_seconds)
        else:
            options = replace(options, max_speech_seconds=part.max_seconds)
    return replace(options, max_units=part.max_units)


def sample_length(context: SampleContext) -> Measure:
    """Measures records by laying them out, with the longest instruction that may be drawn.

    What a mixture opened with it yields fits into its place, whatever is drawn later.

    Args:
        context: of the run.
    """
    longest: dict[Task, str] = {}

    def measure(record: Record) -> int:
        policy = context.policies[record.task]
        if record.task not in longest:
            choices = instructions(record.task, policy)
            longest[record.task] = max(
                choices, key=lambda text: len(context.assembler.encode(text))
            )
        drawn = replace(
            draw(record.task, policy, random.Random(0)),
            instruction=longest[record.task],
            is_text_dropped=False,
            is_identity=False,
            num_filler=policy.max_filler,
        )
        sample = make_sample(record, context, random.Random(0), drawn)
        return len(sample.ids) if context.keeps_padding else sum(sample.is_visible)

    return measure
