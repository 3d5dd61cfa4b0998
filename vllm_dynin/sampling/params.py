"""Request options: one struct defines, documents and validates them.

Standard options (`max_tokens`, `temperature`, `seed`, `stop`, `n`, `logprobs`, …) stay in vLLM's
`SamplingParams`. Ours travel in `SamplingParams.extra_args` (HTTP: `vllm_xargs`) under the names
below with the prefix `dynin_`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from vllm import SamplingParams

PREFIX = "dynin_"
MAX_STEPS = 8_192
"""Bound on `dynin_steps`; steps beyond one a token change nothing."""
MAX_CFG_SCALE = 100.0

Task = Literal["t2t"]
Parity = Literal["default", "reference"]

DEFAULT_BLOCK_LENGTH = 16
"""Tokens per block of a text answer (paper: block 16, 1,024 steps for 1,024 tokens)."""
DEFAULT_MAX_TOKENS = 1_024
"""Length of a text answer where the client states none (paper)."""


class DenoiseParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Options of one request. None means: the task's default.

    Raises:
        ValueError: `parse` and `to_sampling_params` refuse a value outside its stated range.
    """

    task: Task | None = None
    """What the request asks for; inferred from its input where that is unambiguous."""

    steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None = None
    """Denoising steps over all blocks together. Default: one per token. Shared out over the blocks
    in proportion to their length, at least one each; a step that would unmask nothing is skipped.
    """

    block_length: Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None = None
    """Tokens denoised together, blocks left to right. The last block may be shorter. Default 16."""

    cfg_scale: Annotated[float, Meta(ge=0.0, le=MAX_CFG_SCALE)] | None = None
    """Classifier-free guidance s in `u + (s + 1)(c - u)`; 0 (the default) is off and costs nothing,
    more doubles the rows of the forward."""

    remasking: Literal["low_confidence", "random"] | None = None
    """Which masked tokens a step keeps: the most confident (default) or random ones."""

    stop_at_eos: bool | None = None
    """End with the first completed block that contains EOS or `<|eot_id|>`, and cut there; the
    tokens before it are the same either way. Default: `not ignore_eos`; in reference parity off."""

    parity: Parity | None = None
    """`default` fixes what is a bug in the original, `reference` reproduces it (docs/decisions.md).
    """

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
        for name in ours:
            if name not in cls.__struct_fields__:
                raise ValueError(_unknown_option(name, cls.__struct_fields__))
        try:
            return msgspec.convert(ours, cls)
        except msgspec.ValidationError as error:
            raise ValueError(_explain(error, ours)) from None

    def to_extra_args(self) -> dict[str, Any]:
        """The options that were set, as `SamplingParams.extra_args` wants them."""
        return {PREFIX + key: value for key, value in msgspec.to_builtins(self).items()}

    def to_sampling_params(self, **standard: Any) -> SamplingParams:
        """Build vLLM's `SamplingParams` with these options in it.

        Args:
            standard: vLLM's own fields, e.g. `max_tokens=256, temperature=0, seed=1`.

        Raises:
            ValueError: an option is out of range.
        """
        from vllm import SamplingParams  # sampling/ is importable without vLLM

        own = self.to_extra_args()
        self.parse(own)  # constructing a struct checks nothing
        extra = {**(standard.pop("extra_args", None) or {}), **own}
        return SamplingParams(extra_args=extra, **standard)


def _unknown_option(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {PREFIX}{near[0]}? " if near else ""
    return (
        f"unknown option {PREFIX}{name}; {hint}"
        f"options are {', '.join(PREFIX + field for field in known)}"
    )


def _explain(error: msgspec.ValidationError, ours: Mapping[str, Any]) -> str:
    rule, _, where = str(error).partition(" - at `$.")
    name = where.rstrip("`").split("[")[0]
    if name not in ours:
        return str(error)
    if rule.startswith("Invalid enum value"):
        rule = f"use one of {', '.join(map(repr, _choices(name)))}"
    return f"{PREFIX}{name}={ours[name]!r} is invalid: {rule[0].lower()}{rule[1:]}"


def _choices(name: str) -> list[str]:
    """The values a Literal field of `DenoiseParams` allows."""
    hint = get_type_hints(DenoiseParams)[name]
    return [choice for option in get_args(hint) for choice in get_args(option)]
