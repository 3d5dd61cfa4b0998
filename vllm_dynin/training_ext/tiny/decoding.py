"""How `dynin-tiny` is asked: room for the answers, and the options its answers are best with.

The checkpoint carries them (`generation_config`), so that every server and engine follows them.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from vllm_dynin.canvas import Task
from vllm_dynin.defaults import KEY, Defaults

LONGEST_ANSWER = 64
"""Length of an answer in a direction without one of its own. An answer region of hundreds of
tokens is longer than any it was trained on, and answers in it are wrong."""

_WORDS = Defaults(max_tokens=16, temperature=0.0)  # well above four words

DECODING: dict[Task, Defaults] = {
    Task.TEXT_TO_TEXT: _WORDS,
    Task.IMAGE_TO_TEXT: _WORDS,
    Task.VIDEO_TO_TEXT: _WORDS,
    Task.SPEECH_TO_TEXT: _WORDS,
    # Four spoken digits are 38 units. Guidance towards what was said so far is for models that
    # lose the text; this one does not.
    Task.TEXT_TO_SPEECH: Defaults(
        max_tokens=48, temperature=0.0, block_length=8, guidance_scale=0.0
    ),
    # Not greedy: pictures of one prompt would all be the same.
    Task.TEXT_TO_IMAGE: Defaults(temperature=1.0, steps=8, guidance_scale=1.5),
    Task.IMAGE_TO_IMAGE: Defaults(temperature=0.0, steps=8, guidance_scale=0.0),
}
"""What differs from the family's defaults, which suit models of another size."""


def generation_config() -> dict[str, Any]:
    """Content of the checkpoint's `generation_config.json`."""
    own = {task.value: msgspec.to_builtins(defaults) for task, defaults in DECODING.items()}
    return {"max_new_tokens": LONGEST_ANSWER, KEY: own}


def generation_config_text() -> str:
    """The file itself."""
    return json.dumps(generation_config(), indent=2) + "\n"
