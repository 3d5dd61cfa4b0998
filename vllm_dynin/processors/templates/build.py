"""From a finished conditional head to the canvas: slots, columns, positions, second stream.

Every canvas is built here, whether its head came from the templates or from a client.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_dynin.canvas import Canvas, Decoder, Parity, Region, Task
from vllm_dynin.processors.templates.directions import (
    DIRECTIONS,
    check_head,
    check_media,
    infer_task,
)
from vllm_dynin.processors.templates.guidance import (
    build_unconditional,
    hidden_padding,
    visible_stream,
)
from vllm_dynin.tokens import Modality, Vocabulary


def from_head(
    head_ids: Sequence[int],
    targets: int | Sequence[int],
    *,
    vocabulary: Vocabulary,
    num_rows: int,
    parity: Parity = Parity.DEFAULT,
    task: Task | None = None,
    text_targets: int | Sequence[int] | None = None,
    is_guided: bool = False,
    unconditional_head: Sequence[int] | None = None,
) -> Canvas:
    """Build the canvas behind a conditional head.

    Args:
        head_ids: everything up to and not including the first target slot, padding included;
            the index of an id is its position. Padding the model must not see is dropped and
            leaves a gap in the positions.
        targets: slots to generate: their number, or their ids with the mask id where to generate
            and the known id elsewhere (infilling). For an image: its codes in raster order.
        vocabulary: the id layout of the checkpoint.
        num_rows: rows of its embedding table; `reference` lets text come from all of them.
        parity: which behaviour.
        task: the direction; None infers it from the task token in the head.
        text_targets: slots of the text behind the image, for ti2ti and nothing else.
        is_guided: build the second stream.
        unconditional_head: head to guide away from; None takes the direction's own.

    Raises:
        ValueError: the head is not one of the task, lacks its medium or holds another, an id is
            out of range, a known id is not one that the direction may produce, or nothing is left
            to generate.
    """
    task = infer_task(head_ids, vocabulary) if task is None else task
    check_head(head_ids, task, vocabulary)
    _check_ids(head_ids, "prompt", num_rows)
    check_media(head_ids, task, vocabulary)
    if unconditional_head is not None:
        _check_ids(unconditional_head, "unconditional prompt", num_rows)
    slots, regions = _lay_out(task, targets, text_targets, vocabulary, num_rows, parity)
    unconditional = None
    if is_guided:
        unconditional = build_unconditional(
            head_ids,
            slots,
            task=task,
            vocabulary=vocabulary,
            parity=parity,
            unconditional_head=unconditional_head,
        )
    return Canvas(
        task=task,
        parity=parity,
        mask_id=vocabulary.mask,
        conditional=visible_stream(head_ids, hidden_padding(head_ids, task, vocabulary, parity)),
        slots=tuple(slots),
        regions=tuple(regions),
        unconditional=unconditional,
    )


def _check_ids(ids: Sequence[int], what: str, num_rows: int) -> None:
    for index, token in enumerate(ids):
        if not 0 <= token < num_rows:
            raise ValueError(
                f"id {token} at index {index} of the {what} is outside the table's rows "
                f"0..{num_rows - 1}; use the checkpoint's own tokenizer and codes"
            )


def _lay_out(
    task: Task,
    targets: int | Sequence[int],
    text_targets: int | Sequence[int] | None,
    vocabulary: Vocabulary,
    num_rows: int,
    parity: Parity,
) -> tuple[list[int], list[Region]]:
    """Slots from the first target to the end of the sequence, and their regions."""
    if (text_targets is not None) != (task is Task.TEXT_IMAGE_TO_TEXT_IMAGE):
        raise ValueError(
            f"text_targets={text_targets!r} with task {task.value}; the text behind an image is "
            "part of ti2ti, and of no other direction"
        )
    slots: list[int] = []
    regions: list[Region] = []

    def add(values: int | Sequence[int], output: Modality) -> None:
        ids = _target_ids(values, vocabulary.mask)
        region = _region(output, len(slots), len(ids), task, vocabulary, num_rows, parity)
        _check_known(ids, region, vocabulary)
        slots.extend(ids)
        if vocabulary.mask in ids:
            regions.append(region)

    output = DIRECTIONS[task].output
    add(targets, output)
    if output is Modality.IMAGE:
        slots.append(vocabulary.eoi)
    if text_targets is not None:
        slots.append(vocabulary.bos)
        add(text_targets, Modality.TEXT)
        if parity is Parity.REFERENCE:
            slots.append(vocabulary.eos)
    return slots, regions


def _target_ids(values: int | Sequence[int], mask: int) -> list[int]:
    if not isinstance(values, int):
        return list(values)
    if values < 1:
        raise ValueError(f"{values} slots to generate; ask for at least one")
    return [mask] * values


def _region(
    output: Modality,
    start: int,
    num_slots: int,
    task: Task,
    vocabulary: Vocabulary,
    num_rows: int,
    parity: Parity,
) -> Region:
    """The decoder and columns of one kind of output (table in docs/decisions.md)."""
    v = vocabulary
    columns: tuple[tuple[int, int], ...]
    excluded: tuple[int, ...] = ()
    decoder = Decoder.BLOCK
    if output is Modality.IMAGE:
        decoder, columns = Decoder.MASKGIT, ((v.image.start, v.image.stop),)
    elif output is Modality.SPEECH:
        # The order is the class order of the original: units, end of audio, EOS.
        decoder = Decoder.SPEECH
        columns = ((v.speech.start, v.speech.stop), (v.eoa, v.eoa + 1), (v.eos, v.eos + 1))
    elif parity is Parity.DEFAULT:
        # The mask id as an answer would leave the slot masked for good.
        columns, excluded = ((0, v.text.stop),), (v.mask,)
    else:
        is_mixed = task is Task.TEXT_IMAGE_TO_TEXT_IMAGE
        columns = ((0, v.text.stop if is_mixed else num_rows),)
    return Region(
        start=start,
        stop=start + num_slots,
        decoder=decoder,
        columns=columns,
        excluded=excluded,
    )


def _check_known(ids: Sequence[int], region: Region, vocabulary: Vocabulary) -> None:
    for index, token in enumerate(ids):
        if token != vocabulary.mask and not region.allows(token):
            raise ValueError(
                f"known id {token} at target {index} is not one this direction produces; use ids "
                f"in {region.columns}, or the mask id {vocabulary.mask} where to generate"
            )
