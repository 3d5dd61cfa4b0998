"""What each direction's prompt opens and closes with, and how its padding is treated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vllm_dynin.canvas import Task
from vllm_dynin.processors.text_tokenizer import spelled
from vllm_dynin.tokens import Modality, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Direction:
    """Fixed facts of one direction.

    Args:
        opening: `Vocabulary` name of the task token; None where there is none.
        output: what the first target slot holds.
        takes: media a prompt may hold.
        needs: the medium it must hold, or None.
        hides_padding: whether the original masks PAD out of the attention.
    """

    opening: str | None
    output: Modality = Modality.TEXT
    takes: tuple[Modality, ...] = ()
    needs: Modality | None = None
    hides_padding: bool = False

    @property
    def closing(self) -> str | None:
        """`Vocabulary` name of the token right in front of the first target."""
        return {Modality.IMAGE: "soi", Modality.SPEECH: "soa"}.get(self.output)


_IMAGE, _SPEECH = Modality.IMAGE, Modality.SPEECH
_ANY = (_IMAGE, _SPEECH)

DIRECTIONS: dict[Task, Direction] = {
    Task.TEXT_TO_TEXT: Direction(opening=None),
    Task.IMAGE_TO_TEXT: Direction(opening="mmu", takes=_ANY, needs=_IMAGE),
    Task.VIDEO_TO_TEXT: Direction(opening="v2t", takes=_ANY, needs=_IMAGE),
    Task.SPEECH_TO_TEXT: Direction(opening="s2t", takes=(_SPEECH,), needs=_SPEECH),
    Task.TEXT_TO_IMAGE: Direction(opening="t2i", output=_IMAGE, hides_padding=True),
    Task.IMAGE_TO_IMAGE: Direction(
        opening="i2i", output=_IMAGE, takes=(_IMAGE,), needs=_IMAGE, hides_padding=True
    ),
    Task.TEXT_IMAGE_TO_TEXT_IMAGE: Direction(
        opening="ti2ti", output=_IMAGE, takes=(_IMAGE,), needs=_IMAGE, hides_padding=True
    ),
    Task.TEXT_TO_SPEECH: Direction(opening="t2s", output=_SPEECH, hides_padding=True),
    Task.SPEECH_TO_SPEECH: Direction(opening="s2s", output=_SPEECH, takes=_ANY, needs=_SPEECH),
    Task.VIDEO_TO_SPEECH: Direction(opening="v2s", output=_SPEECH, takes=(_IMAGE,), needs=_IMAGE),
}

# Task tokens of the published table for which the original has no prompt and no decoder.
_WITHOUT_DECODER = ("t2v", "v2v", "lvg", "r2i", "t2ti")


def infer_task(head_ids: Sequence[int], vocabulary: Vocabulary) -> Task:
    """The direction a finished conditional head is for, by its task token.

    The first id that is not PAD decides; without a task token it is text. `<|t2i|>` with an image
    in the prompt is the alternative editing prompt.

    Raises:
        ValueError: the task token has no decoder.
    """
    first = next((token for token in head_ids if token != vocabulary.pad), None)
    if first == vocabulary.t2i and vocabulary.eoi in head_ids:
        return Task.IMAGE_TO_IMAGE
    for task, direction in DIRECTIONS.items():
        if direction.opening is not None and first == getattr(vocabulary, direction.opening):
            return task
    for name in _WITHOUT_DECODER:
        if first == getattr(vocabulary, name):
            raise ValueError(
                f"the prompt opens with the task token <|{name}|> (id {first}), for which the "
                "model has no decoder; use one of the supported task tokens, or none for text"
            )
    return Task.TEXT_TO_TEXT


def check_head(head_ids: Sequence[int], task: Task, vocabulary: Vocabulary) -> None:
    """Check that a finished head is one of `task`: task token, closing token, known ids.

    Raises:
        ValueError: the head belongs to another direction, does not end where the targets start,
            or the checkpoint has no codes of the output.
    """
    direction = DIRECTIONS[task]
    inferred = infer_task(head_ids, vocabulary)
    if inferred != task:
        raise ValueError(
            f"the prompt's task token says {inferred.value}, the request says {task.value}; "
            "send the prompt of that task, or leave the task out"
        )
    if direction.closing is None:
        return
    closing = getattr(vocabulary, direction.closing)
    if not head_ids or head_ids[-1] != closing:
        last = head_ids[-1] if head_ids else None
        raise ValueError(
            f"the {task.value} prompt ends with id {last}, but must end with "
            f"<|{direction.closing}|> (id {closing}), up to and not including the first target"
        )
    codes = vocabulary.image if direction.output is Modality.IMAGE else vocabulary.speech
    if not codes:
        raise ValueError(
            f"this checkpoint has no {direction.output.value} codes, so it cannot serve "
            f"{task.value}; use a checkpoint with that modality"
        )


def check_media(head_ids: Sequence[int], task: Task, vocabulary: Vocabulary) -> None:
    """Check that a head holds the media its direction is about and no others.

    Raises:
        ValueError: the mask id is in it, a placeholder is left without its medium, the medium of
            the direction is missing, or there is one that it does not take.
    """
    v, direction = vocabulary, DIRECTIONS[task]
    if v.mask in head_ids:
        raise ValueError(
            f"the prompt has the control token {spelled([v.mask], v)} (id {v.mask}) at index "
            f"{list(head_ids).index(v.mask)}, which stands for what is to be generated; take it "
            "out of the text (infilling has requests and options of its own)"
        )
    pairs = {(v.soi, v.eoi): "image", (v.sov, v.eov): "video", (v.soa, v.eoa): "audio"}
    for index, pair in enumerate(pairwise(head_ids)):
        if pair in pairs:
            kind = pairs[pair]
            raise ValueError(
                f"the prompt has the control tokens {spelled(pair, v)} at index {index}, a place "
                f"for {kind}, and no {kind} input for it; take them out of the text, or send one "
                "for each place"
            )
    for medium, ids in ((_IMAGE, v.image), (_SPEECH, v.speech)):
        found = next((i for i, token in enumerate(head_ids) if token in ids), None)
        name = f"{medium.value} {'codes' if medium is _IMAGE else 'units'}"
        if found is None and direction.needs is medium:
            raise ValueError(
                f"the {task.value} prompt has no {name}; send the input the task is about, or "
                "use another task"
            )
        if found is not None and medium not in direction.takes:
            allowed = " and ".join(kind.value for kind in direction.takes) or "nothing but text"
            raise ValueError(
                f"the {task.value} prompt holds {name} (id {head_ids[found]} at index {found}), "
                f"but the task takes {allowed}; leave them out, or open the prompt with the task "
                "token of another task"
            )
