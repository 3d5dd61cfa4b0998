"""What each direction does where a request does not say.

The paper's settings where it states them, the original's scripts' otherwise
(docs/decisions.md lists both).
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_dynin.canvas import Task


@dataclass(frozen=True, kw_only=True)
class TaskDefaults:
    """Defaults of one direction.

    Args:
        max_tokens: length of the answer; an image's is its resolution.
        block_length: tokens per block; images have no blocks.
        num_steps: denoising steps; None is one per token.
        guidance_scale: s; 0 is off.
    """

    max_tokens: int = 1_024
    block_length: int = 16
    num_steps: int | None = None
    guidance_scale: float = 0.0


TASK_DEFAULTS: dict[Task, TaskDefaults] = {
    Task.TEXT_TO_TEXT: TaskDefaults(),
    Task.IMAGE_TO_TEXT: TaskDefaults(),
    Task.VIDEO_TO_TEXT: TaskDefaults(),
    Task.SPEECH_TO_TEXT: TaskDefaults(max_tokens=128),
    Task.TEXT_TO_IMAGE: TaskDefaults(num_steps=16, guidance_scale=3.5),
    Task.IMAGE_TO_IMAGE: TaskDefaults(num_steps=128, guidance_scale=2.5),
    Task.TEXT_TO_SPEECH: TaskDefaults(max_tokens=512, block_length=128, guidance_scale=2.5),
    Task.SPEECH_TO_SPEECH: TaskDefaults(max_tokens=512, block_length=128),
    Task.VIDEO_TO_SPEECH: TaskDefaults(max_tokens=256, block_length=128),
    Task.TEXT_IMAGE_TO_TEXT_IMAGE: TaskDefaults(num_steps=18, guidance_scale=3.5),
}
DEFAULT_MIXED_TEXT = 128
"""Tokens of the text of a mixed answer (ours: the original leaves it open)."""
UNITS_PER_SECOND = 25
"""Speech units of one second before repeats are collapsed."""
