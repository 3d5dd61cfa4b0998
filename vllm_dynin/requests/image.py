"""Requests that are answered with an image, one of them with a text behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from PIL import Image

from vllm_dynin.canvas import Task
from vllm_dynin.defaults import source_side
from vllm_dynin.processors.codecs.image_io import ImageSource, open_image
from vllm_dynin.processors.placeholders import STAND_IN, empty_media
from vllm_dynin.requests.base import Checkpoint, Prompt, Request
from vllm_dynin.requests.media import (
    listed,
    opened_image,
    pinned_image,
    size_like,
)
from vllm_dynin.requests.wording import refuse_blank


@dataclass(frozen=True)
class TextToImage(Request):
    """A new image.

    Args:
        description: of the image; not blank.
    """

    description: str

    def prompt(self, checkpoint: Checkpoint) -> Prompt:
        """The description in its block."""
        refuse_blank(self.description, "the description")
        return Prompt(
            token_ids=checkpoint.assembler.text_to_image(self.description), options=self.options
        )


@dataclass(frozen=True)
class Inpaint(Request):
    """An image of which a part is painted anew.

    Without a size in `options` the result has the image's proportions, as nearly as the codec's
    patch allows, and about as many pixels as a new image.

    Args:
        image: the known image.
        mask: white where to paint, or transparent where anything is; in the image's proportions.
            See `image_io.open_mask`.
        description: of the whole image as it is to be.
    """

    image: ImageSource
    mask: ImageSource
    description: str

    @classmethod
    def outward(
        cls,
        image: ImageSource,
        description: str,
        *,
        left: int = 0,
        top: int = 0,
        right: int = 0,
        bottom: int = 0,
        **common: Any,
    ) -> Inpaint:
        """Outpainting: the image grows by so many pixels on each side.

        Args:
            image: the known image.
            description: of the whole image as it is to be.
            left: new pixels on the left, likewise for the other sides.
            top: see `left`.
            right: see `left`.
            bottom: see `left`.
            common: fields of `Request`.

        Raises:
            ValueError: it does not grow, or shrinks.
        """
        known = open_image(image)
        sides = {"left": left, "top": top, "right": right, "bottom": bottom}
        if min(sides.values()) < 0 or not any(sides.values()):
            raise ValueError(f"{sides}: give the pixels to add, at least one side above 0")
        size = (known.width + left + right, known.height + top + bottom)
        whole, mask = Image.new("RGB", size), Image.new("L", size, 255)
        whole.paste(known, (left, top))
        mask.paste(0, (left, top, left + known.width, top + known.height))
        return cls(whole, mask, description, **common)

    def prompt(self, checkpoint: Checkpoint) -> Prompt:
        """The description, with the codes outside the mask pinned."""
        refuse_blank(self.description, "the description")
        known = opened_image(self.image, checkpoint)
        options = self.options
        if options.resolution is None and options.width is None:
            height, width = size_like(known, checkpoint.media_config)
            options = msgspec.structs.replace(options, height=height, width=width)
        options = pinned_image(options, known, self.mask, Task.TEXT_TO_IMAGE, checkpoint)
        return Prompt(
            token_ids=checkpoint.assembler.text_to_image(self.description), options=options
        )


@dataclass(frozen=True)
class EditImage(Request):
    """An image, changed as told.

    Args:
        image: the source, or a list of several (the model was trained with one).
        instruction: what to change.
        mask: where it may change, as for `Inpaint`; None leaves the whole image free.
    """

    image: ImageSource | Sequence[ImageSource]
    instruction: str
    mask: ImageSource | None = None

    def prompt(self, checkpoint: Checkpoint) -> Prompt:
        """The sources, then the instruction."""
        refuse_blank(self.instruction, "the instruction")
        config = checkpoint.media_config
        sources = [opened_image(image, checkpoint) for image in listed(self.image)]
        options = self.options
        if self.mask is not None:
            options = pinned_image(options, sources[0], self.mask, Task.IMAGE_TO_IMAGE, checkpoint)
        head = checkpoint.assembler.image_to_image(self.instruction, [STAND_IN] * len(sources))
        return Prompt(
            token_ids=empty_media(head, config.vocabulary),
            options=options,
            media={"image": sources},
            media_options={
                "resolution": source_side(Task.IMAGE_TO_IMAGE, config, options.resolution)
            },
        )


@dataclass(frozen=True)
class MixedAnswer(Request):
    """An image and a text as one answer to an image and a text.

    Args:
        image: the source, or a list of several.
        instruction: what to make of it. The length of the text is `DenoiseParams.text_tokens`.
    """

    image: ImageSource | Sequence[ImageSource]
    instruction: str

    def prompt(self, checkpoint: Checkpoint) -> Prompt:
        """The sources, then the instruction."""
        refuse_blank(self.instruction, "the instruction")
        config = checkpoint.media_config
        sources = [opened_image(image, checkpoint) for image in listed(self.image)]
        head = checkpoint.assembler.text_image_to_text_image(
            self.instruction, [STAND_IN] * len(sources)
        )
        return Prompt(
            token_ids=empty_media(head, config.vocabulary),
            options=self.options,
            media={"image": sources},
            media_options={
                "resolution": source_side(
                    Task.TEXT_IMAGE_TO_TEXT_IMAGE, config, self.options.resolution
                )
            },
        )
