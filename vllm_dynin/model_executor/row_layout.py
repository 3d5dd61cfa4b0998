"""Where the rows of one request lie in its vLLM sequence.

Without guidance: `prompt | canvas`. With guidance both streams are one sequence, so scheduling,
memory accounting, preemption and abort need no pairing of requests:

    unconditional prompt | its canvas | padding to a KV block | conditional prompt | canvas

The conditional part starts on a KV-block boundary, so that its block table is the tail of the
request's. vLLM sees everything before the last canvas as the prompt, and the canvas as draft
tokens; the ids and positions of all rows are ours to write (model_state.py).

A second stream that never changes is computed in the first denoising step alone: its hidden states
are kept, and later steps start at the conditional part.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_dynin.canvas import Canvas, Stream

PADDING_ID = 0
"""Id of padding rows: they are computed, and no other row reads them."""


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """Row numbers within one request's sequence.

    Args:
        num_slots: slots of the canvas.
        unconditional_canvas: first row of the second stream's canvas.
        unconditional_stop: row behind it; 0 without guidance.
        conditional_start: first row of the conditional stream, on a KV-block boundary.
        canvas: first row of the canvas.
    """

    num_slots: int
    unconditional_canvas: int
    unconditional_stop: int
    conditional_start: int
    canvas: int

    @property
    def num_rows(self) -> int:
        """Rows of the whole sequence."""
        return self.canvas + self.num_slots

    @classmethod
    def of(cls, canvas: Canvas, block_size: int, *, conditional_start: int = 0) -> RowLayout:
        """Lay a canvas out for KV blocks of `block_size` rows.

        Args:
            canvas: what is laid out.
            block_size: rows of a KV block.
            conditional_start: least row for the conditional stream to start at, on a block
                boundary. (Where media have fewer codes than were planned for, it stays where the
                scheduler put it.)
        """
        unconditional_canvas = unconditional_stop = 0
        if canvas.unconditional is not None:
            unconditional_canvas = len(canvas.unconditional.stream.ids)
            unconditional_stop = unconditional_canvas + canvas.num_slots
        behind = -(-unconditional_stop // block_size) * block_size
        conditional_start = max(behind, conditional_start)
        return cls(
            num_slots=canvas.num_slots,
            unconditional_canvas=unconditional_canvas,
            unconditional_stop=unconditional_stop,
            conditional_start=conditional_start,
            canvas=conditional_start + len(canvas.conditional.ids),
        )


def prompt_rows(canvas: Canvas, layout: RowLayout) -> list[int]:
    """Ids of the rows in front of the canvas: what vLLM takes for the prompt."""
    ids: list[int] = []
    if canvas.unconditional is not None:
        ids += canvas.unconditional.stream.ids
        ids += canvas.unconditional_slots(canvas.slots)
    ids += [PADDING_ID] * (layout.conditional_start - len(ids))
    return ids + list(canvas.conditional.ids)


def row_positions(canvas: Canvas, layout: RowLayout) -> list[int]:
    """Position id of every row of the sequence, canvas included."""
    positions: list[int] = []
    if canvas.unconditional is not None:
        positions += _stream_positions(canvas.unconditional.stream, canvas.num_slots)
    positions += [0] * (layout.conditional_start - len(positions))
    return positions + _stream_positions(canvas.conditional, canvas.num_slots)


def _stream_positions(stream: Stream, num_slots: int) -> list[int]:
    return [*stream.positions, *range(stream.canvas_start, stream.canvas_start + num_slots)]
