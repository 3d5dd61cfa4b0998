"""The second stream of classifier-free guidance, for each direction.

Three kinds: text hides the whole prompt, speech hides the speech generated so far, images empty the
instruction. docs/decisions.md says which oddities of the original are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_dynin.canvas import GuidanceForm, Parity, Stream, Task, Unconditional
from vllm_dynin.processors.templates.directions import DIRECTIONS, check_head
from vllm_dynin.processors.text_tokenizer import spelled
from vllm_dynin.tokens import Modality, Vocabulary

# PARITY: the original rebuilds the unconditional ids at every step as so many ids of the empty
# prompt and the rest from the conditional sequence. The numbers are resolutions plus one, left
# from a model whose text block was longer (rows 2 and 3 of docs/decisions.md).
_REFERENCE_KEPT = {Task.TEXT_TO_IMAGE: 513, Task.IMAGE_TO_IMAGE: 337}


def visible_stream(head_ids: Sequence[int], hidden: Sequence[bool]) -> Stream:
    """Rows of a head without the hidden ones; positions are the indices in the full head."""
    kept = [(token, i) for i, token in enumerate(head_ids) if not hidden[i]]
    return Stream(
        ids=tuple(token for token, _ in kept),
        positions=tuple(position for _, position in kept),
        canvas_start=len(head_ids),
    )


def hidden_padding(
    head_ids: Sequence[int], task: Task, vocabulary: Vocabulary, parity: Parity
) -> list[bool]:
    """Which rows of a head the model must not see: PAD, where this direction masks it.

    The original feeds padding of the other directions to the model, so that an answer depends on
    the batch; `default` hides it everywhere.
    """
    hides = parity is Parity.DEFAULT or DIRECTIONS[task].hides_padding
    return [hides and token == vocabulary.pad for token in head_ids]


def build_unconditional(
    head_ids: Sequence[int],
    slots: Sequence[int],
    *,
    task: Task,
    vocabulary: Vocabulary,
    parity: Parity,
    unconditional_head: Sequence[int] | None = None,
) -> Unconditional:
    """The second stream for a conditional head and its canvas.

    Args:
        head_ids: the conditional head, padding included.
        slots: the canvas at the start.
        task: the direction.
        vocabulary: the id layout.
        parity: which oddities are kept.
        unconditional_head: head of a second prompt to guide away from; None takes the direction's
            own. The slots then follow the conditional canvas.

    Raises:
        ValueError: a head is not one of this direction, or has no room for the empty prompt.
    """
    output = DIRECTIONS[task].output
    is_image = output is Modality.IMAGE
    is_weighted = is_image and task is not Task.TEXT_IMAGE_TO_TEXT_IMAGE
    form = GuidanceForm.WEIGHTED if is_weighted else GuidanceForm.DELTA
    if unconditional_head is not None:
        check_head(unconditional_head, task, vocabulary)
        if vocabulary.mask in unconditional_head:
            raise ValueError(
                "the prompt to guide away from has the control token "
                f"{spelled([vocabulary.mask], vocabulary)}, which stands for what is to be "
                "generated; take it out, and end the prompt in front of the first target"
            )
    if is_image:
        empty = unconditional_head
        if empty is None:
            empty = empty_prompt(head_ids, task, vocabulary)
        return _image_streams(head_ids, empty, slots, task, vocabulary, parity, form)
    known = head_ids if unconditional_head is None else unconditional_head
    stream = visible_stream(known, hidden_padding(known, task, vocabulary, parity))
    if unconditional_head is not None:
        return Unconditional(stream=stream, follows=(True,) * len(slots), form=form)
    is_target = [slot == vocabulary.mask for slot in slots]
    if output is Modality.SPEECH:
        # PARITY: everything known stays, what is being generated is hidden (row 10).
        follows = tuple(not target for target in is_target)
        return Unconditional(stream=stream, follows=follows, form=form)
    # PARITY: everything known becomes the mask id, infilled text included (row 9).
    masked = Stream(
        ids=(vocabulary.mask,) * len(stream.ids),
        positions=stream.positions,
        canvas_start=stream.canvas_start,
    )
    return Unconditional(stream=masked, follows=tuple(is_target), form=form)


def empty_prompt(head_ids: Sequence[int], task: Task, vocabulary: Vocabulary) -> list[int]:
    """The head of an image direction with its text emptied, at the same length.

    Source images stay; the text becomes BOS EOS, flush right, with PAD in front.

    Raises:
        ValueError: the head is shorter than its own frame.
    """
    v = vocabulary
    if task is Task.TEXT_TO_IMAGE:
        before, after = [], [v.t2i, v.bos, v.eos, v.soi]
    else:
        if v.eoi not in head_ids:
            raise ValueError(
                f"the {task.value} prompt has no <|eoi|> (id {v.eoi}), hence no source image; "
                "send the source as <|soi|> codes <|eoi|>"
            )
        last_eoi = len(head_ids) - 1 - list(reversed(head_ids)).index(v.eoi)
        before, after = list(head_ids[: last_eoi + 1]), [v.bos, v.eos, v.soi]
        first = next(token for token in head_ids if token != v.pad)
        if task is Task.IMAGE_TO_IMAGE and first == v.t2i:  # the alternative editing prompt
            before, after = [*before, v.bos], [v.bos, v.eos, v.eos, v.soi]
    num_padding = len(head_ids) - len(before) - len(after)
    if num_padding < 0:
        raise ValueError(
            f"the {task.value} prompt of {len(head_ids)} ids is {-num_padding} short of an empty "
            "one; keep BOS and EOS around its text"
        )
    return [*before, *[v.pad] * num_padding, *after]


def _image_streams(
    head_ids: Sequence[int],
    empty: Sequence[int],
    slots: Sequence[int],
    task: Task,
    vocabulary: Vocabulary,
    parity: Parity,
    form: GuidanceForm,
) -> Unconditional:
    kept = len(empty)
    if parity is Parity.REFERENCE and task in _REFERENCE_KEPT:
        if len(empty) != len(head_ids):
            raise ValueError(
                f"the unconditional prompt has {len(empty)} ids, the conditional one "
                f"{len(head_ids)}; with parity 'reference' pad the shorter one on the left"
            )
        kept = _REFERENCE_KEPT[task]
    # The mask is always the empty prompt's, even where the ids come from the conditional one.
    hidden = [token == vocabulary.pad for token in empty]
    stream = visible_stream([*empty[:kept], *head_ids[kept : len(empty)]], hidden)
    # Codes kept from the empty prompt are masked there; what stands behind the image is in both.
    num_codes = _num_leading_codes(slots, vocabulary)
    num_hidden = min(max(0, kept - len(empty)), num_codes)
    follows = tuple(index >= num_hidden for index in range(len(slots)))
    return Unconditional(stream=stream, follows=follows, form=form)


def _num_leading_codes(slots: Sequence[int], vocabulary: Vocabulary) -> int:
    """Slots of the image, without what follows it."""
    return list(slots).index(vocabulary.eoi) if vocabulary.eoi in slots else len(slots)
