"""What each direction does where a request does not say: the one order of resolution.

    request  >  checkpoint (`generation_config.json`, key `dynin`)  >  family (`FAMILY_DEFAULTS`)

A checkpoint says for each direction only what differs from the family:

    {"dynin": {"t2s": {"max_tokens": 48, "block_length": 8, "guidance_scale": 0.0}}}

Its `max_new_tokens`, which other programs know too, is the length of every text and speech answer
that `dynin` does not give one, and its `temperature` that of every text. The family's values are
the paper's settings where it states them, the original's scripts' otherwise (docs/decisions.md
lists both).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta

from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig, MMadaConfig
from vllm_dynin.sampling.params import (
    MAX_CFG_SCALE,
    MAX_STEPS,
    PREFIX,
    STANDARD,
    DenoiseParams,
    Remasking,
    Side,
)

KEY = "dynin"
"""Of `generation_config.json`."""
UNITS_PER_SECOND = 25
"""Speech units of one second before repeats are collapsed."""


class Defaults(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Defaults of one direction, as a checkpoint writes them. None leaves it to the next in order.

    The options have the meaning and range of those of `DenoiseParams` with the same name.
    """

    max_tokens: Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None = None
    """Length of a text or speech answer in tokens. An image's is its size."""

    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    """Where it is None: 0 for text and 1 for images and speech, but what the OpenAI-compatible
    routes of vLLM have (1) there."""

    steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None = None
    """Denoising steps; None is one per token."""

    block_length: Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None = None
    """Tokens denoised together; images have no blocks."""

    guidance_scale: Annotated[float, Meta(ge=0.0, le=MAX_CFG_SCALE)] | None = None
    """Of classifier-free guidance; 0 is off."""

    noise_schedule: str | None = None
    """How an image is unmasked."""

    remasking: Remasking | None = None
    """Which text tokens stay unmasked."""

    resolution: Side | None = None
    """Pixels a side of a square image; None is the size that `config.json` names."""

    width: Side | None = None
    """Pixels across an image; goes with `height`, instead of `resolution`."""

    height: Side | None = None
    """Pixels down an image."""

    style: str | None = None
    """How speech sounds."""

    text_tokens: Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None = None
    """Tokens of the text behind the image of a mixed answer."""

    def options(self) -> DenoiseParams:
        """As options of a request.

        Raises:
            ValueError: two of them contradict each other.
        """
        given = {
            PREFIX + name: value
            for name, value in msgspec.structs.asdict(self).items()
            if value is not None and name not in STANDARD
        }
        return DenoiseParams.parse(given)


FAMILY_DEFAULTS: dict[Task, Defaults] = {
    Task.TEXT_TO_TEXT: Defaults(max_tokens=1_024, block_length=16),
    Task.IMAGE_TO_TEXT: Defaults(max_tokens=1_024, block_length=16),
    Task.VIDEO_TO_TEXT: Defaults(max_tokens=1_024, block_length=16),
    Task.SPEECH_TO_TEXT: Defaults(max_tokens=128, block_length=16),
    Task.TEXT_TO_IMAGE: Defaults(steps=16, guidance_scale=3.5),
    Task.IMAGE_TO_IMAGE: Defaults(steps=128, guidance_scale=2.5),
    Task.TEXT_TO_SPEECH: Defaults(max_tokens=512, block_length=128, guidance_scale=2.5),
    Task.SPEECH_TO_SPEECH: Defaults(max_tokens=512, block_length=128),
    Task.VIDEO_TO_SPEECH: Defaults(max_tokens=256, block_length=128),
    # The original leaves the length of the text open.
    Task.TEXT_IMAGE_TO_TEXT_IMAGE: Defaults(
        steps=18, guidance_scale=3.5, block_length=16, text_tokens=128
    ),
}

_TEXTS = (Task.TEXT_TO_TEXT, Task.IMAGE_TO_TEXT, Task.VIDEO_TO_TEXT, Task.SPEECH_TO_TEXT)
_SPEECH = (Task.TEXT_TO_SPEECH, Task.SPEECH_TO_SPEECH, Task.VIDEO_TO_SPEECH)


def read_defaults(*generation_configs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a checkpoint says about its directions.

    Args:
        generation_configs: contents of `generation_config.json`, and what replaces parts of it,
            later ones first in rank.

    Returns:
        For `LLaDAConfig.generation_defaults`: fields of `Defaults` by direction.

    Raises:
        ValueError: not of the schema; the message names the place.
    """
    found: dict[str, dict[str, Any]] = {}
    for values in generation_configs:
        for direction, own in _directions(values.get(KEY, {})).items():
            found[direction] = {**_without_size(found.get(direction, {}), own), **own}
    merged = {name: value for values in generation_configs for name, value in values.items()}
    room, temperature = merged.get("max_new_tokens"), merged.get("temperature")
    for task in Task:
        general = {}
        if room is not None and task in (*_TEXTS, *_SPEECH):
            general["max_tokens"] = room
        elif room is not None and task is Task.TEXT_IMAGE_TO_TEXT_IMAGE:
            general["text_tokens"] = room
        if temperature is not None and task in _TEXTS:
            general["temperature"] = temperature
        if general:
            _converted(general, "generation_config.json")
            found[task.value] = {**general, **found.get(task.value, {})}
    return found


def _directions(own: Any) -> dict[str, dict[str, Any]]:
    known = [task.value for task in Task]
    if not isinstance(own, Mapping):
        raise ValueError(
            f"generation_config.json: {KEY} is {own!r}; write an object with the defaults of each "
            f"direction, such as {{'t2s': {{'max_tokens': 256}}}}"
        )
    for direction, values in own.items():
        place = f"generation_config.json: {KEY}.{direction}"
        if direction not in known:
            raise ValueError(f"{place} is no direction; use {', '.join(known)}")
        if not isinstance(values, Mapping):
            raise ValueError(f"{place} is {values!r}; write an object")
        for name in values:
            if name not in Defaults.__struct_fields__:
                near = difflib.get_close_matches(str(name), Defaults.__struct_fields__, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise ValueError(
                    f"{place}.{name} is unknown; {hint}"
                    f"fields are {', '.join(Defaults.__struct_fields__)}"
                )
        _converted(values, place)
    return {direction: dict(values) for direction, values in own.items()}


def _converted(values: Mapping[str, Any], place: str) -> Defaults:
    try:
        return msgspec.convert(dict(values), Defaults)
    except msgspec.ValidationError as error:
        raise ValueError(f"{place}: {error}; it has {dict(values)!r}") from None


_SIZE = ("resolution", "width", "height")


def _without_size(values: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Values of an earlier source; a size that a later one gives replaces all of theirs."""
    is_sized = any(later.get(name) is not None for name in _SIZE)
    return {name: v for name, v in values.items() if not (is_sized and name in _SIZE)}


def stated_defaults(task: Task, config: LLaDAConfig) -> Defaults:
    """What the checkpoint itself says about a direction."""
    return msgspec.convert(config.generation_defaults.get(task.value, {}), Defaults)


def defaults_of(task: Task, config: LLaDAConfig) -> Defaults:
    """What holds for a direction where a request does not say: checkpoint, then family."""
    stated = msgspec.structs.asdict(stated_defaults(task, config))
    return msgspec.structs.replace(
        FAMILY_DEFAULTS[task],
        **{name: value for name, value in stated.items() if value is not None},
    )


def default_size(task: Task, config: MMadaConfig) -> tuple[int, int]:
    """Height and width in pixels of an image where a request does not say."""
    stated = stated_defaults(task, config)
    if stated.width is not None:
        return cast(int, stated.height), stated.width
    side = config.edit_resolution
    if task is Task.TEXT_TO_IMAGE:
        side = config.generation_resolution
    return stated.resolution or side, stated.resolution or side


def source_side(task: Task, config: MMadaConfig, resolution: int | None = None) -> int:
    """Pixels a side of a source image: those of the result where it is square.

    Args:
        task: an edit.
        config: of the checkpoint.
        resolution: that the request asks for.
    """
    return resolution or stated_defaults(task, config).resolution or config.edit_resolution
