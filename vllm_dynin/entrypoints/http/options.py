"""What the routes' fields mean for a request: sizes, qualities, seeds and `vllm_xargs`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self
from urllib.parse import quote

import msgspec
from fastapi.responses import Response
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.defaults import defaults_of
from vllm_dynin.entrypoints.http import half_characters, validation
from vllm_dynin.entrypoints.http.fields import IGNORED_HEADER, Rule, apply
from vllm_dynin.entrypoints.http.unsaid import without_blanks, without_nulls
from vllm_dynin.sampling.params import PREFIX, DenoiseParams

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Scale = Annotated[float, Field(ge=0.0, le=100.0)]
Temperature = Annotated[float, Field(ge=0.0, le=2.0)]

QUALITIES = {"low": 0.5, "medium": 1.0, "standard": 1.0, "auto": 1.0, "high": 2.0, "hd": 2.0}
"""Quality → denoising steps, as a multiple of the direction's default."""

_SIZE = re.compile(r"([1-9]\d{0,4})[x×]([1-9]\d{0,4})")


class Said(BaseModel):
    """A request body that reads null and blank fields as not said, and follows `fields.py`."""

    rules: ClassVar[Mapping[str, Rule]] = {}
    _ignored: tuple[str, ...] = PrivateAttr(())
    _given: Mapping[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def ignored(self) -> tuple[str, ...]:
        """Fields that were sent and have no effect on the answer."""
        return self._ignored

    def follow(self, rules: Mapping[str, Rule]) -> None:
        """Check what was sent against rules that depend on the body itself.

        Fields that neither they nor the body know are ignored, as vLLM does.

        Raises:
            ValueError: a field is refused.
        """
        _, ignored = apply(rules, self._given)
        unknown = [name for name in self.model_extra or () if name not in rules]
        self._ignored = (*ignored, *unknown)

    @classmethod
    def prepared(cls, said: dict[str, Any]) -> dict[str, Any]:
        """What was said, as the checks of the body take it."""
        return said

    @classmethod
    def check_names(cls, names: Iterable[str]) -> None:
        """Check the names of the fields that are left.

        Raises:
            ValueError: one is unknown, where that is refused.
        """

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, Mapping):
            return handler(data)
        required = {
            field.alias or name for name, field in cls.model_fields.items() if field.is_required()
        }
        half_characters.check(data)
        said = without_blanks(without_nulls(dict(data)), required)
        kept, ignored = apply(cls.rules, cls.prepared(said))
        cls.check_names(kept)
        try:
            body = handler(kept)
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            # From a check of vLLM's that takes the shape of a field for granted.
            raise ValueError(_misshapen(cls, said, error)) from error
        body._ignored, body._given = tuple(ignored), kept
        return body


def _misshapen(body: type[BaseModel], data: Mapping[str, Any], error: Exception) -> str:
    for name, value in data.items():
        if (field := body.model_fields.get(name)) is None:
            continue
        try:
            TypeAdapter[Any](field.annotation).validate_python(value)  # type: ignore[arg-type]
        except ValidationError as found:
            errors = [{**one, "loc": ("body", name, *one["loc"])} for one in found.errors()]
            return validation.found(errors, data, body).sentence
        except Exception:
            return f"{name}={repr(value)[:60]} is not of the form this route takes"
    return f"a field is not of the form this route takes ({error})"


class Body(Said):
    """A request body of ours: a field that is not in it is refused, not ignored."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    model: str | None = Field(None, description="Name of the served model.")
    vllm_xargs: dict[str, JsonValue] | None = Field(
        None, description="Options of `DenoiseParams`, each with `dynin_` in front of its name."
    )

    @classmethod
    def prepared(cls, said: dict[str, Any]) -> dict[str, Any]:
        """A list that was sent under its plain name has one item."""
        lists = {n: f.alias for n, f in cls.model_fields.items() if f.alias == f"{n}[]"}
        return {
            lists.get(name, name): [value] if name in lists and isinstance(value, str) else value
            for name, value in said.items()
        }

    @classmethod
    def check_names(cls, names: Iterable[str]) -> None:
        """Refuse what is not a field.

        Raises:
            ValueError: something is not.
        """
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name in names:
            if name not in known and name not in cls.model_fields:
                raise ValueError(
                    f"{str(name)[:80]!r} is not supported here; leave it out (fields are "
                    f"{', '.join(sorted(known | cls.rules.keys()))})"
                )


_MAX_NOTED = 20
"""Ignored fields that are named in the header."""


def noted(answer: Response, body: Said) -> Response:
    """An answer that says which fields of its request were ignored.

    Names are the client's: what a header cannot hold of them is written as in a URL.
    """
    if body.ignored:
        names = [quote(name[:60], safe="[]") for name in body.ignored[:_MAX_NOTED]]
        more = len(body.ignored) - len(names)
        answer.headers[IGNORED_HEADER] = ", ".join([*names, *([f"{more} more"] if more else [])])
    return answer


def parse_options(xargs: Mapping[str, Any] | None, **own: Any) -> DenoiseParams:
    """Our options of a request.

    Args:
        xargs: `vllm_xargs` of the body.
        own: what other fields of the body say about the same options; None says nothing.

    Raises:
        ValueError: unknown or out of range, or said twice.
    """
    given = dict(xargs or {})
    for name in given:
        if not name.startswith(PREFIX):
            raise ValueError(
                f"vllm_xargs has {name!r}: its keys are options of this model, and their names "
                f"begin with {PREFIX}; other settings are fields of the body"
            )
    if given.get(f"{PREFIX}trajectory"):
        raise ValueError(
            "dynin_trajectory has no place in this answer; to watch it fill in, set stream and "
            "partial_images where the route has them"
        )
    options = DenoiseParams.parse(given)
    changes = {name: value for name, value in own.items() if value is not None}
    for name, value in changes.items():
        if getattr(options, name) is not None:
            raise ValueError(
                f"{PREFIX}{name}={getattr(options, name)!r} in vllm_xargs, but other fields of the "
                f"body come to {value!r}; say it once"
            )
    return msgspec.structs.replace(options, **changes)


def parse_size(size: str | None) -> tuple[int, int] | None:
    """Width and height in pixels of `WIDTHxHEIGHT`; None for the default.

    Raises:
        ValueError: not of this form.
    """
    size = "auto" if size is None else size.strip().lower()
    if size == "auto":
        return None
    found = _SIZE.fullmatch(size)
    if found is None:
        raise ValueError(
            f"size={size[:40]!r}: write WIDTHxHEIGHT in pixels, such as 256x256, or auto"
        )
    return int(found[1]), int(found[2])


def size_options(size: str | None) -> dict[str, int]:
    """`DenoiseParams` of a size: one side for a square, both otherwise."""
    pixels = parse_size(size)
    if pixels is None:
        return {}
    width, height = pixels
    return {"resolution": width} if width == height else {"width": width, "height": height}


def quality_steps(quality: str | None, task: Task, config: LLaDAConfig) -> int | None:
    """Denoising steps of a quality; None where it was left out, or to the server.

    Raises:
        ValueError: no such quality.
    """
    if quality is None or quality == "auto":
        return None
    if quality not in QUALITIES:
        raise ValueError(f"quality={quality[:40]!r} is not one of {', '.join(QUALITIES)}")
    default = defaults_of(task, config).steps
    assert default is not None
    return max(1, round(default * QUALITIES[quality]))


def one_of(**settings: Any) -> Any:
    """The one setting of several names for the same thing that was given; None without any.

    Raises:
        ValueError: more than one was given.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if len(given) > 1:
        said = " and ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"{said} set the same thing; give one of them")
    return next(iter(given.values()), None)
