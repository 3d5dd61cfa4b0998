"""The training view of a layout: the same sequence as serving, with its targets filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vllm_dynin.canvas import Canvas, Parity, Region, Task
from vllm_dynin.processors.templates.build import from_head
from vllm_dynin.processors.templates.directions import DIRECTIONS, infer_task
from vllm_dynin.tokens import Modality, Vocabulary

IGNORE = -100
"""Label of a position that carries no loss."""

EosPolicy = Literal["all", "first", "none"]
"""Which EOS of the target carry a label: stages 2 and 3 of the paper, the original's video
captions, stage 1 of the paper. End of audio always does."""

Filler = Literal["target", "visible"]
"""EOS behind the answer: part of the target, or clean context without a label."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training sequence before noising. All tuples have one entry a position.

    Args:
        task: the direction.
        ids: clean token ids, padding included.
        is_target: positions the masking process may replace by the mask id.
        labels: clean id where the loss may look, `IGNORE` elsewhere.
        is_visible: keys the model may attend to; a hidden position has no row in serving.
    """

    task: Task
    ids: tuple[int, ...]
    is_target: tuple[bool, ...]
    labels: tuple[int, ...]
    is_visible: tuple[bool, ...]

    @property
    def region_length(self) -> int:
        """Target positions, labelled or not: `answer_len` of the original's losses."""
        return sum(self.is_target)


def build_sample(
    head_ids: Sequence[int],
    target_ids: Sequence[int],
    *,
    vocabulary: Vocabulary,
    num_rows: int,
    num_targets: int | None = None,
    text_ids: Sequence[int] | None = None,
    num_text_targets: int | None = None,
    parity: Parity = Parity.DEFAULT,
    task: Task | None = None,
    eos_policy: EosPolicy = "all",
    filler: Filler = "target",
) -> Sample:
    """Lay out one training sequence: the canvas serving builds for its head, with targets filled.

    Args:
        head_ids: conditional head, as for `from_head`; empty for text whose every token is a
            target (stage 2 of the original).
        target_ids: clean answer without its ending: text ids without EOS, or image codes or
            speech units *as token ids*.
        vocabulary: the id layout.
        num_rows: rows of the embedding table.
        num_targets: slots of the answer. A shorter text or speech answer is filled up with EOS, a
            longer one keeps its head and its ending. None means the answer and its ending.
        text_ids: the text behind the image, for ti2ti and nothing else; without EOS.
        num_text_targets: its slots, as `num_targets`.
        parity: as for `from_head`.
        task: as for `from_head`.
        eos_policy: which EOS carry a label.
        filler: what the EOS behind the answer's ending are.

    Raises:
        ValueError: as `from_head`, or a target id is not one the direction produces, or an image
            has another size than `num_targets`.

    Source: `*_prompt` builders of Dynin-Omni (`t2s_prompt_ignore_padding` for `visible`).
    """
    task = infer_task(head_ids, vocabulary) if task is None else task
    output = DIRECTIONS[task].output
    answers = [_complete(target_ids, output, num_targets, vocabulary)]
    if text_ids is not None:
        answers.append(_complete(text_ids, Modality.TEXT, num_text_targets, vocabulary))
    masked = [[vocabulary.mask] * len(answer.ids) for answer in answers]
    canvas = from_head(
        head_ids,
        masked[0],
        vocabulary=vocabulary,
        num_rows=num_rows,
        parity=parity,
        task=task,
        text_targets=masked[1] if len(masked) > 1 else None,
    )
    ids, is_target = list(canvas.slots), [False] * canvas.num_slots
    for region, answer in zip(canvas.regions, answers, strict=True):
        _check_targets(answer.ids, region, task)
        ids[region.start : region.stop] = answer.ids
        for index in range(len(answer.ids)):
            is_own = index < answer.num_own
            is_target[region.start + index] = is_own or filler == "target"
    labels = _labels(ids, is_target, canvas, eos_policy, vocabulary.eos)
    visible = set(canvas.conditional.positions)
    num_head = len(head_ids)
    return Sample(
        task=task,
        ids=(*head_ids, *ids),
        is_target=(*[False] * num_head, *is_target),
        labels=(*[IGNORE] * num_head, *labels),
        is_visible=(*[i in visible for i in range(num_head)], *[True] * len(ids)),
    )


@dataclass(frozen=True)
class _Answer:
    ids: list[int]
    num_own: int
    """Ids up to and including the ending; what follows is filler."""


def _complete(
    ids: Sequence[int], output: Modality, num_targets: int | None, vocabulary: Vocabulary
) -> _Answer:
    """The answer with its ending and filler, `num_targets` long."""
    if output is Modality.IMAGE:
        if num_targets is not None and num_targets != len(ids):
            raise ValueError(
                f"{len(ids)} image codes for {num_targets} slots; an image fills its slots "
                "exactly, resize it to the target resolution"
            )
        return _Answer(list(ids), len(ids))
    ending = vocabulary.eoa if output is Modality.SPEECH else vocabulary.eos
    length = len(ids) + 1 if num_targets is None else num_targets
    if length < 1:
        raise ValueError(f"num_targets={length}; an answer takes at least one slot, its ending")
    own = [*ids[: length - 1], ending]
    return _Answer(own + [vocabulary.eos] * (length - len(own)), len(own))


def _check_targets(ids: Sequence[int], region: Region, task: Task) -> None:
    for index, token in enumerate(ids):
        if not region.allows(token):
            raise ValueError(
                f"target id {token} at index {index} is not one {task.value} produces; "
                f"use clean ids in {region.columns}"
            )


def _labels(
    ids: Sequence[int],
    is_target: Sequence[bool],
    canvas: Canvas,
    eos_policy: EosPolicy,
    eos: int,
) -> list[int]:
    labels = [token if target else IGNORE for token, target in zip(ids, is_target, strict=True)]
    for region in canvas.regions:
        positions = [i for i in range(region.start, region.stop) if labels[i] == eos]
        dropped = {"all": [], "first": positions[1:], "none": positions}[eos_policy]
        for position in dropped:
            labels[position] = IGNORE
    return labels
