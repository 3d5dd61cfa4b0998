"""What clients of vllm-omni 0.28 send for this model: trigger tokens and `additional_information`.

Source: `vllm_omni/model_executor/models/dynin_omni/` of the vllm-omni 0.28.0 wheel, read for the
names and their meaning. There, `additional_information` could also name checkpoints, files and code
to load; those keys are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from vllm_dynin.canvas import Task
from vllm_dynin.config import MMadaConfig
from vllm_dynin.entrypoints.http.options import one_of
from vllm_dynin.tokens import Modality

TRIGGERS = {
    "<|i2i|>": Task.IMAGE_TO_IMAGE,
    "<|t2i|>": Task.TEXT_TO_IMAGE,
    "<|t2s|>": Task.TEXT_TO_SPEECH,
}
"""Tokens in the text of a message that chose its direction, in the order they were looked for."""

_PLACEHOLDERS = re.compile(r"<\|so[iva]\|><\|(?:image|video|audio)\|><\|eo[iva]\|>")

_TASKS = {
    "t2t": Task.TEXT_TO_TEXT,
    "mmu": Task.TEXT_TO_TEXT,
    "t2i": Task.TEXT_TO_IMAGE,
    "i2i": Task.IMAGE_TO_IMAGE,
    "ti2ti": Task.TEXT_IMAGE_TO_TEXT_IMAGE,
    "t2s": Task.TEXT_TO_SPEECH,
    "t2s_mmu_like": Task.TEXT_TO_SPEECH,
    "t2s_fixed": Task.TEXT_TO_SPEECH,
    "s2s": Task.SPEECH_TO_SPEECH,
    "v2s": Task.VIDEO_TO_SPEECH,
}
_DETOKENIZERS = {0: Modality.TEXT, 1: Modality.SPEECH, 2: Modality.IMAGE}

# Names there → names of ours; several names for one thing were tried in turn.
_OPTIONS = {
    "steps": ("steps", "timesteps"),
    "block_length": ("block_length",),
    "cfg_scale": ("cfg_scale",),
    "guidance_scale": ("guidance_scale",),
    "remasking": ("remasking",),
    "noise_schedule": ("noise_schedule", "noise_schedule_name", "mask_schedule", "schedule"),
    "resolution": ("resolution", "image_resolution"),
    "style": ("condition", "t2s_condition"),
}
_SETTINGS = {
    "max_tokens": ("max_new_tokens", "t2s_token_length"),
    "temperature": ("temperature",),
    "seed": ("seed",),
    "instruction": ("instruction",),
}
_CHECKED = ("task", "detok_id", "mask_id", "mask_token_id", "codebook_size", "audio_codebook_size")
_KNOWN = {
    name for table in (_OPTIONS, _SETTINGS) for names in table.values() for name in names
} | set(_CHECKED)

_NAMES_A_FILE = re.compile(
    r"path|file|dir\b|repo|source|config|url|module|code|tokenizer|model|local|uni_prompting|hub"
)


class Information(msgspec.Struct, frozen=True, kw_only=True):
    """What `additional_information` asks for, in our terms. None says nothing."""

    task: Task | None = None
    options: dict[str, Any] = {}
    """Of `DenoiseParams`."""
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    instruction: str | None = None


def read_information(given: Mapping[str, Any], config: MMadaConfig) -> Information:
    """Read `additional_information`.

    Args:
        given: scalars by name; a list of one counts as its item, as it did.
        config: of the checkpoint, to check what clients say about it.

    Raises:
        ValueError: a key that names a file or code, an unknown one, a value that is no scalar, or
            one that contradicts the checkpoint.
    """
    values = {name: _scalar(name, value) for name, value in given.items()}
    values = {name: value for name, value in values.items() if value is not None}
    _check_facts(values, config)

    def found(table: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
        chosen = {
            ours: one_of(**{name: values.get(name) for name in names})
            for ours, names in table.items()
        }
        return {name: value for name, value in chosen.items() if value is not None}

    settings = found(_SETTINGS)
    try:
        return msgspec.convert(
            {"task": _task(values), "options": found(_OPTIONS), **settings}, Information
        )
    except msgspec.ValidationError as error:
        raise ValueError(f"additional_information: {error}") from None


def _scalar(name: str, value: Any) -> Any:
    if name not in _KNOWN:
        if _NAMES_A_FILE.search(name):
            raise ValueError(
                f"additional_information {name[:60]!r} names a file, a checkpoint or code to load; "
                "this server takes those from its own command line; leave it out"
            )
        raise ValueError(
            f"additional_information {name[:60]!r} is not supported; keys are "
            f"{', '.join(sorted(_KNOWN))}"
        )
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is not None and not isinstance(value, str | int | float | bool):
        raise ValueError(
            f"additional_information {name!r} is a {type(value).__name__}; give a number or a word"
        )
    if isinstance(value, str) and re.search(r"[/\\]", value):
        raise ValueError(
            f"additional_information {name}={value[:40]!r} looks like a path; give a number or a "
            "word"
        )
    return value


def _task(values: Mapping[str, Any]) -> Task | None:
    name = values.get("task")
    if name is None:
        return None
    if name not in _TASKS:
        raise ValueError(
            f"additional_information task={name!r} is not one of {', '.join(_TASKS)}; other "
            "directions follow from the media of the message"
        )
    return _TASKS[name]


def _check_facts(values: Mapping[str, Any], config: MMadaConfig) -> None:
    """Check what clients say about the checkpoint, which needs no saying.

    Raises:
        ValueError: it is not so.
    """
    vocabulary = config.vocabulary
    facts = {
        "mask_id": vocabulary.mask,
        "mask_token_id": vocabulary.mask,
        "codebook_size": len(vocabulary.image),
        "audio_codebook_size": len(vocabulary.speech),
    }
    for name, fact in facts.items():
        if name in values and values[name] != fact:
            raise ValueError(
                f"additional_information {name}={values[name]!r}, but it is {fact} in this "
                "checkpoint; leave it out"
            )
    if "detok_id" in values and values["detok_id"] not in _DETOKENIZERS:
        raise ValueError(
            f"additional_information detok_id={values['detok_id']!r}: 0 is text, 1 speech, 2 image"
        )


def triggered(text: str) -> tuple[Task | None, str]:
    """The direction that a trigger token in a text asks for, and the text as it was read.

    Returns:
        None and the same text where there is no trigger. Otherwise the text has no trigger and no
        placeholders, and single spaces.
    """
    for token, task in TRIGGERS.items():
        if token in text:
            rest = _PLACEHOLDERS.sub(" ", text).replace(token, " ", 1)
            return task, " ".join(rest.split())
    return None, text
