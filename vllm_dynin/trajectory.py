"""An answer as it filled in: the canvas after every denoising step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from vllm_dynin.sampling.decided_steps import UNDECIDED

_GREY = (128, 128, 128)


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """At which denoising step each token of an answer was decided.

    A token that is decided stays, so this and the final ids are all there is to know.

    Args:
        token_ids: of the answer.
        steps: for each of them, its step: from 1; 0 for what was known before (infilling).
        mask_id: what an undecided slot held.
    """

    token_ids: tuple[int, ...]
    steps: tuple[int, ...]
    mask_id: int

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.steps)

    @property
    def num_steps(self) -> int:
        """Steps until the last token was decided."""
        return max(self.steps, default=0)

    def is_decided(self, step: int) -> list[bool]:
        """For each token, whether it stood after this step (0: before the first)."""
        return [UNDECIDED != own <= step for own in self.steps]

    def canvas(self, step: int) -> list[int]:
        """Ids after a step, the mask id where nothing was decided."""
        pairs = zip(self.token_ids, self.is_decided(step), strict=True)
        return [token if decided else self.mask_id for token, decided in pairs]

    def text(self, step: int, decode: Callable[[Sequence[int]], str], blank: str = "·") -> str:
        """A text answer after a step.

        Args:
            step: 0 .. num_steps.
            decode: text of token ids.
            blank: stands for one undecided token.
        """
        parts = []
        for is_mask, run in groupby(self.canvas(step), lambda token: token == self.mask_id):
            ids = list(run)
            parts.append(blank * len(ids) if is_mask else decode(ids))
        return "".join(parts)

    def image_frames(self, image: Image.Image, patch: int) -> Iterator[Image.Image]:
        """An image after each step, from before the first on, undecided patches grey.

        The finished image is uncovered; the decoder is not run on unfinished ones, for which it
        has no input.

        Args:
            image: the finished one, whose codes are the first of `token_ids`.
            patch: pixels per code along each side.
        """
        columns = image.width // patch
        num_codes = columns * (image.height // patch)
        for step in range(max(self.steps[:num_codes], default=0) + 1):
            yield self.covered(image, step, patch)

    def covered(self, image: Image.Image, step: int, patch: int) -> Image.Image:
        """An image with the patches that are undecided after a step in grey.

        Args:
            image: whose codes are the first of `token_ids`; it is not changed.
            step: from 0.
            patch: pixels per code along each side.
        """
        columns = image.width // patch
        num_codes = columns * (image.height // patch)
        frame = image.copy()
        for slot, decided in enumerate(self.is_decided(step)[:num_codes]):
            if not decided:
                left, top = slot % columns * patch, slot // columns * patch
                frame.paste(_GREY, (left, top, left + patch, top + patch))
        return frame


def write_gif(
    frames: Sequence[Image.Image],
    target: str | Path | BinaryIO,
    *,
    seconds: float = 3.0,
    scale: int = 1,
) -> None:
    """Write frames as an endless GIF that rests on the last one.

    Args:
        frames: of one size, at least one.
        target: path, or a binary file.
        seconds: that the frames take together; the last one is shown for another 1.5 s.
        scale: whole-number enlargement.
    """
    if not frames:
        raise ValueError("there are no frames to write; take them from Trajectory.image_frames")
    size = (frames[0].width * scale, frames[0].height * scale)
    scaled = [frame.resize(size, Image.Resampling.NEAREST) for frame in frames]
    each = max(20, round(1000 * seconds / len(frames)))
    durations = [each] * (len(frames) - 1) + [each + 1500]
    scaled[0].save(
        target, save_all=True, append_images=scaled[1:], duration=durations, loop=0, format="GIF"
    )
