"""Request options: one struct defines, documents and validates them.

Standard options (`max_tokens`, `temperature`, `seed`, `stop`, `n`, `logprobs`, …) stay in vLLM's
`SamplingParams`. Ours travel in `SamplingParams.extra_args` (HTTP: `vllm_xargs`) under the names
below with the prefix `dynin_`.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from vllm_dynin.canvas import Parity, Task

if TYPE_CHECKING:
    from vllm import SamplingParams

PREFIX = "dynin_"
MAX_STEPS = 8_192
"""Bound on `dynin_steps`; steps beyond one a token change nothing."""
MAX_CFG_SCALE = 100.0

Remasking = Literal["low_confidence", "random"]
"""Which masked text tokens a step keeps."""
Side = Annotated[int, Meta(ge=1, le=8_192)]
"""Pixels along one side of a generated image."""


class DenoiseParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Options of one request. None means: the direction's default.

    That is the checkpoint's, or where it has none the family's, which is named below
    (`vllm_dynin/defaults.py`).

    Names of a task or a parity are as good as the members of their enums.

    Raises:
        ValueError: a value of another type, outside its stated range, or against another one.
    """

    task: Task | None = None
    """Direction, as in `canvas.Task`; by default the one whose task token opens the prompt."""

    steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None = None
    """Denoising steps, for text and speech over all blocks together. Default: one per token for
    text and speech, 16 for a new image, 128 for an edit. Shared out over the blocks of a text in
    proportion to their length, at least one each; a step that would unmask nothing is skipped."""

    block_length: Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None = None
    """Tokens denoised together, blocks left to right; the last block may be shorter. Default 16
    for text, 128 for speech. Images have no blocks."""

    cfg_scale: Annotated[float, Meta(ge=0.0, le=MAX_CFG_SCALE)] | None = None
    """Classifier-free guidance s in `u + (s + 1)(c - u)`; 0 is off and costs nothing, more doubles
    the rows of the forward. Default 3.5 for a new image, 2.5 for an edit and for text to speech,
    otherwise 0."""

    guidance_scale: Annotated[float, Meta(ge=0.0, le=MAX_CFG_SCALE)] | None = None
    """The same quantity under the name image users know; give one of the two."""

    uncond_prompt_token_ids: tuple[int, ...] | None = None
    """Head to guide away from, up to and not including the first target slot. Default: the
    direction's own, see docs/decisions.md."""

    noise_schedule: str | None = None
    """How fast an image fills in over its steps: `cosine` (default), `linear`, `sigmoid`, or `pow`
    with an exponent such as `pow2`."""

    resolution: Side | None = None
    """Pixels a side of a square generated image; a multiple of the codec's patch (16)."""

    width: Side | None = None
    """Pixels across a generated image; goes with `height`, instead of `resolution`."""

    height: Side | None = None
    """Pixels down a generated image."""

    max_duration: Annotated[float, Meta(gt=0.0, le=600.0)] | None = None
    """Longest speech to generate, in seconds at 25 units a second; instead of `max_tokens`. Units
    are free of repeats, so the spoken result is usually longer."""

    style: str | None = None
    """How generated speech sounds, e.g. `gender-female_emotion-happy_speed-normal_pitch-high`;
    used when it is turned into sound."""

    text_tokens: Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None = None
    """Tokens of the text behind the image of a mixed answer (ti2ti). Default 128."""

    target_token_ids: tuple[int, ...] | None = None
    """Infilling: the whole answer, with the mask id where to generate; other ids are kept."""

    remasking: Remasking | None = None
    """Which masked text tokens a step keeps: the most confident (default) or random ones."""

    stop_at_eos: bool | None = None
    """End with the first completed block that contains EOS or `<|eot_id|>`, and cut there; the
    tokens before it are the same either way. Default: `not ignore_eos`; in reference parity off."""

    parity: Parity | None = None
    """`default` fixes what is a bug in the original, `reference` reproduces it (docs/decisions.md).
    """

    report: bool | None = None
    """Whether the answer comes with an account of its work: denoising steps, forwards, seconds.
    It is in the output's `kv_transfer_params` under `dynin_report`. Goes with n=1."""

    trajectory: bool | None = None
    """Whether to keep at which denoising step each token was decided, to show an answer as it
    filled in. The report, which comes along, names it. Goes with n=1."""

    def __post_init__(self) -> None:
        for name, hint in _hints().items():
            value = getattr(self, name)
            if value is None:
                continue
            try:
                read = msgspec.convert(value, hint)
            except msgspec.ValidationError as error:
                raise ValueError(_explain(name, value, error)) from None
            if read is not value:
                msgspec.structs.force_setattr(self, name, read)
        self._check_pairs()

    @classmethod
    def parse(cls, extra_args: Mapping[str, Any] | None) -> DenoiseParams:
        """Read our options out of `SamplingParams.extra_args`; other keys are left alone.

        Raises:
            ValueError: an unknown `dynin_` option, a wrong type, or a value out of range.
        """
        ours = {
            key.removeprefix(PREFIX): value
            for key, value in (extra_args or {}).items()
            if key.startswith(PREFIX)
        }
        for name, value in ours.items():
            if name not in cls.__struct_fields__:
                raise ValueError(_unknown_option(name, cls.__struct_fields__))
            if name in _flags() and value in (0, 1):
                ours[name] = bool(value)  # the type of vLLM's `vllm_xargs` makes true a 1
        return cls(**ours)

    def _check_pairs(self) -> None:
        if self.cfg_scale is not None and self.guidance_scale is not None:
            raise ValueError(
                "dynin_cfg_scale and dynin_guidance_scale are the same quantity; give one of them"
            )
        if (self.width is None) != (self.height is None):
            raise ValueError(
                "dynin_width and dynin_height go together; give both, or one "
                "dynin_resolution for a square"
            )
        if self.resolution is not None and self.width is not None:
            raise ValueError(
                "dynin_resolution stands for a square; give it, or dynin_width and dynin_height"
            )

    def to_extra_args(self) -> dict[str, Any]:
        """The options that were set, as `SamplingParams.extra_args` wants them."""
        return {PREFIX + key: value for key, value in msgspec.to_builtins(self).items()}

    def to_sampling_params(self, **standard: Any) -> SamplingParams:
        """Build vLLM's `SamplingParams` with these options in it.

        Args:
            standard: vLLM's own fields, e.g. `max_tokens=256, temperature=0, seed=1`. Without
                `max_tokens` or `temperature` they are the direction's defaults, or 1 where neither
                checkpoint nor family has a temperature.

        Raises:
            ValueError: an option is out of range.
        """
        from vllm import SamplingParams  # sampling/ is importable without vLLM

        stated = {name: standard.get(name) for name in STANDARD}
        if stated["temperature"] is None:
            standard.pop("temperature", None)
        standard.setdefault("max_tokens", None)  # the direction's default length
        own = self.to_extra_args()
        extra = {**(standard.pop("extra_args", None) or {}), **own}
        return note_stated(SamplingParams(extra_args=extra, **standard), **stated)


STANDARD = ("max_tokens", "temperature")
"""Fields of `SamplingParams` that a direction has defaults for."""


def note_stated(params: SamplingParams, **stated: Any) -> SamplingParams:
    """Note which of `STANDARD` a client has stated, None for what it has not; returns `params`.

    VLLM's frontends fill in what is missing before admission sees it. This is an attribute of the
    frontend's object alone: it is no field, and is not sent anywhere.
    """
    filled_in = {name: getattr(params, name) for name in stated}
    params._dynin_stated = stated, filled_in  # type: ignore[attr-defined]
    return params


def stated(params: Any) -> dict[str, Any]:
    """What was noted; what was not, or was set to something else since then, is as stated."""
    fields = {name: getattr(params, name, None) for name in STANDARD}
    noted, filled_in = getattr(params, "_dynin_stated", ({}, {}))
    return fields | {n: v for n, v in noted.items() if fields[n] == filled_in[n]}


@cache
def _flags() -> frozenset[str]:
    """Names of the options that are true or false."""
    hints = get_type_hints(DenoiseParams)
    return frozenset(name for name, hint in hints.items() if bool in (hint, *get_args(hint)))


def _unknown_option(name: str, known: tuple[str, ...]) -> str:
    if name == "num_frames":
        return (
            f"{PREFIX}num_frames comes too late: media are prepared before sampling options are "
            "read; send mm_processor_kwargs={'num_frames': …} beside the video"
        )
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {PREFIX}{near[0]}? " if near else ""
    return (
        f"unknown option {PREFIX}{name}; {hint}"
        f"options are {', '.join(PREFIX + field for field in known)}"
    )


@cache
def _hints() -> dict[str, Any]:
    """Type of each option, with its range."""
    return get_type_hints(DenoiseParams, include_extras=True)


def _explain(name: str, value: Any, error: msgspec.ValidationError) -> str:
    rule = str(error).partition(" - at `$")[0]
    if choices := _choices(name):
        rule = f"use one of {', '.join(map(repr, choices))}"
    return f"{PREFIX}{name}={repr(value)[:80]} is invalid: {rule[0].lower()}{rule[1:]}"


def _choices(name: str) -> list[str]:
    """The values a Literal or enum field of `DenoiseParams` allows."""
    choices: list[str] = []
    for option in get_args(get_type_hints(DenoiseParams)[name]):
        is_enum = isinstance(option, type) and issubclass(option, enum.Enum)
        choices += [member.value for member in option] if is_enum else get_args(option)
    return choices
