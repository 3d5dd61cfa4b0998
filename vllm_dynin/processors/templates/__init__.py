"""Prompt layouts of every direction, one definition for serving and training.

A *head* is everything in front of the first target, as token ids with padding included, built by
the function of its direction. `from_head` turns a head into the `Canvas` that serving denoises,
`build_sample` into the sequence that training noises; a head from a client goes the same way.
Source and oddities: docs/decisions.md.
"""

from vllm_dynin.processors.templates.build import from_head
from vllm_dynin.processors.templates.directions import DIRECTIONS, Direction, infer_task
from vllm_dynin.processors.templates.image import (
    IMAGE_TEXT_BLOCK,
    image_to_image_alternative_head,
    image_to_image_head,
    text_image_to_text_image_head,
    text_to_image_head,
)
from vllm_dynin.processors.templates.pieces import DoesNotFit, Overflow
from vllm_dynin.processors.templates.sample import (
    IGNORE,
    EosPolicy,
    Filler,
    Sample,
    build_sample,
)
from vllm_dynin.processors.templates.speech import (
    SPEECH_TEXT_BLOCK,
    VIDEO_TEXT_BLOCK,
    read_units,
    speech_to_speech_head,
    text_to_speech_head,
    video_to_speech_head,
)
from vllm_dynin.processors.templates.understanding import (
    answer_start,
    image_to_text_head,
    speech_to_text_head,
    speech_to_text_training_head,
    text_head,
    video_to_text_head,
)

__all__ = [
    "DIRECTIONS",
    "IGNORE",
    "IMAGE_TEXT_BLOCK",
    "SPEECH_TEXT_BLOCK",
    "VIDEO_TEXT_BLOCK",
    "Direction",
    "DoesNotFit",
    "EosPolicy",
    "Filler",
    "Overflow",
    "Sample",
    "answer_start",
    "build_sample",
    "from_head",
    "image_to_image_alternative_head",
    "image_to_image_head",
    "image_to_text_head",
    "infer_task",
    "read_units",
    "speech_to_speech_head",
    "speech_to_text_head",
    "speech_to_text_training_head",
    "text_head",
    "text_image_to_text_image_head",
    "text_to_image_head",
    "text_to_speech_head",
    "video_to_speech_head",
    "video_to_text_head",
]
