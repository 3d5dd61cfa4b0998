"""The plain data of one denoising request: what is known, what is generated, and how.

A request is a *prompt* (rows whose ids never change) followed by a *canvas* (the slots from the
first target to the end of the sequence). Everything here is ints, strings and tuples, so it can be
pickled, sent between processes by msgspec and compared with `==`. Nothing here computes.

Words used throughout: a *slot* is one position of the canvas; a slot that starts as the mask id is
a *target*, any other slot is *pinned*; a *region* is a span of slots that one decoder fills; a
*stream* is one sequence that goes through the model (guidance adds a second one).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Task(enum.StrEnum):
    """A direction: what goes in and what comes out. The value is the public `dynin_task`."""

    TEXT_TO_TEXT = "t2t"
    IMAGE_TO_TEXT = "mmu"
    VIDEO_TO_TEXT = "v2t"
    SPEECH_TO_TEXT = "s2t"
    TEXT_TO_IMAGE = "t2i"
    IMAGE_TO_IMAGE = "i2i"
    TEXT_TO_SPEECH = "t2s"
    TEXT_IMAGE_TO_TEXT_IMAGE = "ti2ti"
    SPEECH_TO_SPEECH = "s2s"
    VIDEO_TO_SPEECH = "v2s"


class Parity(enum.StrEnum):
    """`reference` keeps the original's behaviour, oddities included; `default` repairs its bugs.

    The decision for each oddity is in docs/decisions.md.
    """

    DEFAULT = "default"
    REFERENCE = "reference"


class Decoder(enum.StrEnum):
    """How a region is filled: algorithms A, B and C of docs/decisions.md."""

    BLOCK = "block"
    """Block by block; the most confident proposals are committed (text)."""
    MASKGIT = "maskgit"
    """All slots at once; the least confident are masked again after each step (images)."""
    SPEECH = "speech"
    """Block by block; sampled proposals over units, end of audio and EOS are committed."""


class GuidanceForm(enum.StrEnum):
    """Which of two algebraically equal formulas combines the streams; bf16 tells them apart."""

    WEIGHTED = "weighted"
    """`(1 + s)·c - s·u`"""
    DELTA = "delta"
    """`u + (1 + s)·(c - u)`"""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The rows in front of the canvas of one sequence, with explicit positions.

    Padding that the model must not see has no row here, but the position ids it took are left
    out, so `positions` may have gaps and need not start at 0.

    Args:
        ids: token ids of the rows.
        positions: position id of each row, strictly increasing, from 0.
        canvas_start: position id of slot 0; slot i has position `canvas_start + i`.

    Raises:
        ValueError: lengths differ, or positions do not increase up to `canvas_start`.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    canvas_start: int

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.positions):
            raise ValueError(
                f"{len(self.ids)} ids but {len(self.positions)} positions; give one position a row"
            )
        if self.ids and min(self.ids) < 0:
            raise ValueError(f"token id {min(self.ids)} is negative; ids start at 0")
        previous = -1
        for position in (*self.positions, self.canvas_start):
            if position <= previous:
                raise ValueError(
                    f"position {position} follows {previous}; positions must increase from 0 "
                    "over the rows and on to the first slot"
                )
            previous = position

    @classmethod
    def contiguous(cls, ids: tuple[int, ...]) -> Stream:
        """Rows at positions 0, 1, …, with the canvas right behind them."""
        return cls(ids=ids, positions=tuple(range(len(ids))), canvas_start=len(ids))


@dataclass(frozen=True, kw_only=True)
class Region:
    """A contiguous span of slots that one decoder fills.

    Args:
        start: first slot.
        stop: one behind the last slot.
        decoder: the algorithm.
        columns: half-open id ranges a proposal may come from, in class order (the order in which
            the restricted logits stand); ranges do not overlap.
        excluded: ids inside `columns` that must not be proposed, ascending.

    Raises:
        ValueError: the span is empty, or the ranges are empty, overlap, or miss an excluded id.
    """

    start: int
    stop: int
    decoder: Decoder
    columns: tuple[tuple[int, int], ...]
    excluded: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(
                f"region {self.start}..{self.stop}: needs 0 <= start < stop; give at least one slot"
            )
        if not self.columns:
            raise ValueError("a region allows no columns; give at least one id range")
        end = 0
        for first, last in sorted(self.columns):
            if not end <= first < last:
                raise ValueError(
                    f"id ranges {self.columns}: each must be non-empty, not negative and must not "
                    "overlap another"
                )
            end = last
        if list(self.excluded) != sorted(set(self.excluded)):
            raise ValueError(f"excluded ids {self.excluded} must be distinct and ascending")
        for token_id in self.excluded:
            if not any(first <= token_id < last for first, last in self.columns):
                raise ValueError(f"excluded id {token_id} lies outside the ranges {self.columns}")
        if self.num_columns == 0:
            raise ValueError("every allowed id is excluded; leave at least one")

    @property
    def num_slots(self) -> int:
        """Slots in the span, pinned ones included."""
        return self.stop - self.start

    @property
    def num_columns(self) -> int:
        """Ids that may be proposed."""
        return sum(last - first for first, last in self.columns) - len(self.excluded)

    def allows(self, token_id: int) -> bool:
        """Whether `token_id` may be proposed here."""
        inside = any(first <= token_id < last for first, last in self.columns)
        return inside and token_id not in self.excluded


@dataclass(frozen=True, kw_only=True)
class Unconditional:
    """The second stream of classifier-free guidance.

    Args:
        stream: its rows in front of the canvas, with positions of its own.
        follows: for each slot, True if this stream holds the id the conditional canvas holds at
            that moment; False if it holds the mask id for the whole request.
        form: how the two logits are combined.
    """

    stream: Stream
    follows: tuple[bool, ...]
    form: GuidanceForm


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """All that a driver needs to denoise one request, except the sampling parameters.

    Regions are decoded in the order given, each to its end, while the targets of later regions
    stay masked and visible.

    Args:
        task: the direction.
        parity: which behaviour the layout was built for.
        mask_id: id of a slot that is still to be decided.
        conditional: the rows in front of the canvas.
        slots: ids of the canvas at the start: `mask_id` where to generate, any other id is pinned.
        regions: disjoint spans in slot order that together contain every target.
        unconditional: the second stream; None leaves guidance off.

    Raises:
        ValueError: a target lies in no region or a region in no canvas, regions overlap or hold no
            target, the prompt contains the mask id, or `follows` has another length than `slots`.
    """

    task: Task
    parity: Parity
    mask_id: int
    conditional: Stream
    slots: tuple[int, ...]
    regions: tuple[Region, ...]
    unconditional: Unconditional | None = None

    def __post_init__(self) -> None:
        if self.mask_id in self.conditional.ids:
            row = self.conditional.ids.index(self.mask_id)
            raise ValueError(
                f"row {row} of the prompt is the mask id {self.mask_id}; the prompt is what is "
                "known, so put what is to be generated into the canvas (infilling)"
            )
        if self.slots and min(self.slots) < 0:
            raise ValueError(f"token id {min(self.slots)} is negative; ids start at 0")
        self._check_regions()
        if self.unconditional is not None and len(self.unconditional.follows) != len(self.slots):
            raise ValueError(
                f"{len(self.unconditional.follows)} entries in `follows` for {len(self.slots)} "
                "slots; give one a slot"
            )

    def _check_regions(self) -> None:
        num_targets, end = 0, 0
        for region in self.regions:
            if region.start < end or region.stop > len(self.slots):
                raise ValueError(
                    f"region {region.start}..{region.stop} must start at or behind {end} and end "
                    f"within the {len(self.slots)} slots"
                )
            end = region.stop
            count = self.slots[region.start : region.stop].count(self.mask_id)
            if count == 0:
                raise ValueError(
                    f"region {region.start}..{region.stop} has nothing to generate; "
                    "leave it out or mask one of its slots"
                )
            num_targets += count
        if num_targets == 0:
            raise ValueError("the canvas has no target: no slot is the mask id; mask at least one")
        if num_targets != self.num_targets:
            raise ValueError(
                f"{self.num_targets - num_targets} masked slots lie in no region; "
                "cover every masked slot"
            )

    @property
    def num_slots(self) -> int:
        """Slots of the canvas, pinned ones included."""
        return len(self.slots)

    @property
    def num_targets(self) -> int:
        """Slots to be generated."""
        return self.slots.count(self.mask_id)

    @property
    def num_prompt_tokens(self) -> int:
        """What a client is told it sent: rows of the conditional prompt only."""
        return len(self.conditional.ids)

    @property
    def num_rows(self) -> int:
        """Rows of one exact denoising step, both streams."""
        rows = len(self.conditional.ids) + self.num_slots
        if self.unconditional is not None:
            rows += len(self.unconditional.stream.ids) + self.num_slots
        return rows

    @property
    def max_position(self) -> int:
        """Largest position id of either stream."""
        start = self.conditional.canvas_start
        if self.unconditional is not None:
            start = max(start, self.unconditional.stream.canvas_start)
        return start + self.num_slots - 1

    @property
    def is_unconditional_constant(self) -> bool:
        """Whether the second stream never changes, so that its logits are computed once.

        A pinned slot that follows does not change either.
        """
        if self.unconditional is None:
            return False
        pairs = zip(self.slots, self.unconditional.follows, strict=True)
        return not any(follows and slot == self.mask_id for slot, follows in pairs)

    def unconditional_slots(self, slots: tuple[int, ...]) -> tuple[int, ...]:
        """Ids of the second stream's slots while the conditional canvas holds `slots`.

        Raises:
            ValueError: there is no second stream, or `slots` has another length.
        """
        if self.unconditional is None:
            raise ValueError("this canvas has no unconditional stream; build it with guidance")
        pairs = zip(slots, self.unconditional.follows, strict=True)
        return tuple(slot if follows else self.mask_id for slot, follows in pairs)
