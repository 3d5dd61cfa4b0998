"""How `dynin-tiny` is asked: room for the answers, and the options its answers are best with.

Evaluation, demonstration and model card read them here.
"""

from __future__ import annotations

from vllm_dynin.canvas import Task
from vllm_dynin.sampling.params import DenoiseParams

MAX_TOKENS: dict[Task, int] = {
    Task.TEXT_TO_TEXT: 16,
    Task.IMAGE_TO_TEXT: 16,
    Task.VIDEO_TO_TEXT: 16,
    Task.SPEECH_TO_TEXT: 16,
    Task.TEXT_TO_SPEECH: 48,
}
"""Tokens of an answer: well above four words, and above the 38 units of four spoken digits."""

LONGEST_ANSWER = 64
"""What a server gives a request that does not say, and the most it gives."""

DECODING: dict[Task, DenoiseParams] = {
    # Guidance towards what was said so far is for models that lose the text; this one does not.
    Task.TEXT_TO_SPEECH: DenoiseParams(block_length=8, cfg_scale=0.0),
    Task.TEXT_TO_IMAGE: DenoiseParams(steps=8, cfg_scale=1.5),
    Task.IMAGE_TO_IMAGE: DenoiseParams(steps=8, cfg_scale=0.0),
}
"""Options that differ from the serving defaults, which suit models of another size."""

TEMPERATURE: dict[Task, float] = {Task.TEXT_TO_IMAGE: 1.0}
"""Where it is not 0: greedy pictures of a prompt would all be the same."""
