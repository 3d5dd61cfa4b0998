"""Pieces that several prompt layouts share: wrapped media and padded text blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vllm_dynin.tokens import Vocabulary

Overflow = Literal["refuse", "cut"]
"""A text too long for its block: an error, or the original's cut (keep the head, end in EOS)."""


class DoesNotFit(ValueError):
    """A text or an answer is longer than its place: the record is sound, the room too small."""


def wrap_image(codes: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """`<|soi|> codes <|eoi|>`; the frames of a video are one such span, in temporal order.

    Args:
        codes: image codes without offset, in raster order.
        vocabulary: the id layout.

    Raises:
        ValueError: there is no code, or one is out of range.
    """
    _check_not_empty(codes, "an image")
    return [vocabulary.soi, *vocabulary.image_ids(codes), vocabulary.eoi]


def wrap_speech(units: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """`<|soa|> units <|eoa|>`.

    Args:
        units: speech units without offset.
        vocabulary: the id layout.

    Raises:
        ValueError: there is no unit, or one is out of range.
    """
    _check_not_empty(units, "a piece of speech")
    return [vocabulary.soa, *vocabulary.speech_ids(units), vocabulary.eoa]


def _check_not_empty(values: Sequence[int], what: str) -> None:
    if len(values) == 0:
        raise ValueError(f"{what} without codes; encode the medium first, or leave it out")


def with_bos(text_ids: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """The text, opened by BOS unless it already is."""
    ids = list(text_ids)
    return ids if ids[:1] == [vocabulary.bos] else [vocabulary.bos, *ids]


def left_padded(
    ids: Sequence[int], length: int, vocabulary: Vocabulary, overflow: Overflow
) -> list[int]:
    """A text block: `ids` (which end in EOS) with PAD in front, up to `length`.

    Args:
        ids: the block's content, EOS included.
        length: tokens of the block.
        vocabulary: the id layout.
        overflow: `cut` keeps the first `length - 1` ids and ends them with EOS.

    Raises:
        DoesNotFit: the content is too long and `overflow` is `refuse`.

    Source: `t2i_gen_prompt` of Dynin-Omni, `training/prompting_utils.py`.
    """
    if len(ids) > length:
        if overflow == "refuse":
            raise DoesNotFit(
                f"the text takes {len(ids)} tokens with its control tokens, but this prompt holds "
                f"{length}; shorten the text by {len(ids) - length} tokens"
            )
        return [*ids[: length - 1], vocabulary.eos]
    return [vocabulary.pad] * (length - len(ids)) + list(ids)
