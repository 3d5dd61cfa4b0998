"""Sizes of images that a server has room for, and the refusal that lists them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import msgspec

from vllm_dynin.canvas import Task
from vllm_dynin.defaults import default_size, source_side
from vllm_dynin.model_executor.admission import Limits, check_rows
from vllm_dynin.planning import PlanRequest, StandardOptions, image_size, make_plan
from vllm_dynin.processors.assemble import Codes
from vllm_dynin.requests import Checkpoint, EditImage, Inpaint, MixedAnswer, Request, TextToImage
from vllm_dynin.requests.media import listed
from vllm_dynin.sampling.params import DenoiseParams

_USUAL = ((256, 256), (512, 512), (1024, 1024), (1536, 1024), (1024, 1536))
_LISTED_SQUARES = 6


def size_refusal(request: Request, checkpoint: Checkpoint, limits: Limits) -> str | None:
    """What to say where the size of an image is what keeps a request from fitting; None otherwise.

    Costs about as much as admission; `check_codes` is enough for what is far too large.

    Args:
        request: of any direction.
        checkpoint: that answers it.
        limits: of the engine.

    Raises:
        ValueError: the request cannot be planned at all.
    """
    room = _Room.of(request, checkpoint, limits)
    if room is None or not room.is_too_small(*room.asked()):
        return None
    return room.refusal()


def check_codes(request: Request, checkpoint: Checkpoint, limits: Limits) -> None:
    """Check what can be told without a plan, before media are opened and known parts encoded.

    Arguments as for `size_refusal`.

    Raises:
        ValueError: the image it asks for has too many codes; the message lists sizes that fit.
    """
    room = _Room.of(request, checkpoint, limits)
    if room is None:
        return
    try:
        width, height = room.asked()
    except ValueError as error:
        raise ValueError(f"{error}; {room.list()}") from error
    if width * height > room.most_codes * room.patch**2:
        raise ValueError(room.refusal())


class _Room:
    """What there is room for beside the prompt of one request."""

    def __init__(
        self,
        *,
        task: Task,
        text: str,
        num_sources: int,
        options: DenoiseParams,
        checkpoint: Checkpoint,
        limits: Limits,
    ) -> None:
        self._task, self._text, self._num_sources = task, text, num_sources
        self._options, self._checkpoint, self._limits = options, checkpoint, limits
        self._config = checkpoint.media_config
        self.patch = self._config.image_patch
        self.most_codes = min(limits.max_slots, limits.max_rows)

    @classmethod
    def of(cls, request: Request, checkpoint: Checkpoint, limits: Limits) -> _Room | None:
        """None where no image is asked for."""
        common: dict[str, Any] = {
            "options": request.options,
            "checkpoint": checkpoint,
            "limits": limits,
        }
        if isinstance(request, TextToImage | Inpaint):
            return cls(task=Task.TEXT_TO_IMAGE, text=request.description, num_sources=0, **common)
        if not isinstance(request, EditImage | MixedAnswer):
            return None
        is_mixed = isinstance(request, MixedAnswer)
        return cls(
            task=Task.TEXT_IMAGE_TO_TEXT_IMAGE if is_mixed else Task.IMAGE_TO_IMAGE,
            text=request.instruction,
            num_sources=len(listed(request.image)),
            **common,
        )

    def asked(self) -> tuple[int, int]:
        """Width and height that the request asks for.

        Raises:
            ValueError: no image has such a size.
        """
        height, width = image_size(self._options, self._task, self._config)
        return width, height

    def refusal(self) -> str:
        """What is said of a size that does not fit."""
        width, height = self.asked()
        codes = (width // self.patch) * (height // self.patch)
        return (
            f"an image of {width}x{height} pixels has {codes} codes, one a slot, and so many slots "
            f"do not fit into a request here; ask for less: {self.list()}"
        )

    def has(self, width: int, height: int) -> bool:
        """Whether an image of this size fits, sources and guidance included."""
        try:
            return not self.is_too_small(width, height)
        except ValueError:
            return False

    def is_too_small(self, width: int, height: int) -> bool:
        """Whether this size is what keeps the request from fitting; False where something else is.

        Raises:
            ValueError: there is no plan for it.
        """
        if width * height > self.most_codes * self.patch**2:
            return True
        size = {"resolution": None, "width": width, "height": height}
        if width == height:
            size = {"resolution": width, "width": None, "height": None}
        options = msgspec.structs.replace(self._options, target_token_ids=None, **size)
        plan = PlanRequest(
            prompt_ids=tuple(self._head(options)), standard=StandardOptions(), options=options
        )
        canvas = make_plan(plan, self._checkpoint.config).canvas
        try:
            check_rows(canvas, self._limits)
        except ValueError:
            return True
        return False

    def _head(self, options: DenoiseParams) -> Sequence[int]:
        assembler = self._checkpoint.assembler
        if self._task is Task.TEXT_TO_IMAGE:
            return assembler.text_to_image(self._text)
        side = source_side(self._task, self._config, options.resolution) // self.patch
        sources: list[Codes] = [(0,) * side**2] * self._num_sources
        if self._task is Task.IMAGE_TO_IMAGE:
            return assembler.image_to_image(self._text, sources)
        return assembler.text_image_to_text_image(self._text, sources)

    def list(self) -> str:
        """The sizes there is room for, in words."""
        most = self._largest_square()
        if not most:
            return (
                "no image fits beside this prompt; shorten it or send fewer images, or start with "
                "larger --max-model-len and --max-num-batched-tokens"
            )
        step = self.patch * max(1, most // self.patch // _LISTED_SQUARES)
        squares = {*range(step, most + 1, step), most}
        height, width = default_size(self._task, self._config)
        sizes = {(side, side) for side in squares} | {(width, height), *_USUAL}
        fits = [size for size in sorted(sizes) if self.has(*size)]
        return (
            f"sizes that fit are {', '.join(f'{width}x{height}' for width, height in fits)} and "
            f"others whose sides are multiples of {self.patch}, with {most}x{most} pixels or fewer"
        )

    def _largest_square(self) -> int:
        """Side of the largest square that fits; 0 where none does."""
        low, high = 0, isqrt(self.most_codes)
        while low < high:
            middle = (low + high + 1) // 2
            if self.has(middle * self.patch, middle * self.patch):
                low = middle
            else:
                high = middle - 1
        return low * self.patch
