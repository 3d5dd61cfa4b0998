"""Heads whose media are not encoded yet: two control tokens stand for each.

vLLM's processor puts as many stand-ins between the two as the medium will have codes, and the
worker puts the codes there (`multimodal.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_dynin.processors.assemble import expand_media
from vllm_dynin.tokens import Vocabulary

STAND_IN = (0,)
"""Codes of a medium for the head builders, where a head is built to be emptied below."""


def empty_media(
    head_ids: Sequence[int], vocabulary: Vocabulary, *, is_video: bool = False
) -> list[int]:
    """A head with nothing between the control tokens around its media.

    Args:
        head_ids: of any direction; media are the only image codes and speech units in it.
        vocabulary: the id layout.
        is_video: whether its images are the frames of videos, whose placeholder is another one.
    """
    v = vocabulary
    ids = [token for token in head_ids if token not in v.image and token not in v.speech]
    if not is_video:
        return ids
    swapped = list(ids)
    for index in range(len(ids) - 1):
        if (ids[index], ids[index + 1]) == (v.soi, v.eoi):
            swapped[index : index + 2] = [v.sov, v.eov]
    return swapped


def stand_ins(
    head_ids: Sequence[int], media: Mapping[str, Sequence[object]], vocabulary: Vocabulary
) -> tuple[int, ...]:
    """A head with one code in the place of each medium: enough to plan its request with.

    Args:
        head_ids: with placeholders.
        media: items by vLLM's modality; their number alone counts.
        vocabulary: the id layout.

    Raises:
        ValueError: as many media as placeholders are needed.
    """
    count = {kind: [STAND_IN] * len(items) for kind, items in media.items()}
    return expand_media(
        head_ids,
        vocabulary,
        images=count.get("image", ()),
        videos=count.get("video", ()),
        speech=count.get("audio", ()),
    )
