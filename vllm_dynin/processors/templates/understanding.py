"""Prompts that are answered in text: chat, images, video and speech.

No padding, no EOS; the answer follows the assistant header at the end of the query.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_dynin.processors.templates.pieces import wrap_image, wrap_speech
from vllm_dynin.tokens import Vocabulary


def text_head(
    query_ids: Sequence[int], vocabulary: Vocabulary, *, has_bos: bool = True
) -> tuple[int, ...]:
    """`BOS query`; the benchmark form has no BOS.

    Args:
        query_ids: ids of the whole prompt string, assistant header included, without BOS.
        vocabulary: the id layout.
        has_bos: False for the benchmark form.

    Source: `validation/generate.py:main` (BOS), `evaluation/lm/eval_dynin_omni.py` (none).
    """
    return (vocabulary.bos, *query_ids) if has_bos else tuple(query_ids)


def image_to_text_head(
    images: Sequence[Sequence[int]], query_ids: Sequence[int], vocabulary: Vocabulary
) -> tuple[int, ...]:
    """`<|mmu|> (<|soi|> codes <|eoi|>)* BOS query`.

    Args:
        images: codes of each image, without offset, in raster order.
        query_ids: ids of user header, question and assistant header.
        vocabulary: the id layout.

    Raises:
        ValueError: there is no image, or a code is out of range.

    Source: `_concat_mmu_inputs` (one image) and `mmu_mult_prompt` (several) of Dynin-Omni.
    """
    if not images:
        raise ValueError("image to text without an image; give one, or ask in plain text")
    media = [token for codes in images for token in wrap_image(codes, vocabulary)]
    return (vocabulary.mmu, *media, vocabulary.bos, *query_ids)


def video_to_text_head(
    frames: Sequence[Sequence[int]], query_ids: Sequence[int], vocabulary: Vocabulary
) -> tuple[int, ...]:
    """`<|v2t|> <|soi|> codes of all frames <|eoi|> BOS query`, no mark between frames.

    Args:
        frames: codes of each frame, in temporal order.
        query_ids: ids of user header, question and assistant header; empty for the caption form
            of training stage 1, whose target starts with BOS: then no BOS stands here either.
        vocabulary: the id layout.

    Raises:
        ValueError: there is no frame, or a code is out of range.

    Source: `_load_video_tokens` and `_run_v2t` of Dynin-Omni.
    """
    codes = [code for frame in frames for code in frame]
    query = (vocabulary.bos, *query_ids) if query_ids else ()
    return (vocabulary.v2t, *wrap_image(codes, vocabulary), *query)


def speech_to_text_head(
    units: Sequence[int], query_ids: Sequence[int], vocabulary: Vocabulary
) -> tuple[int, ...]:
    """`<|s2t|> <|soa|> units <|eoa|> query`, without BOS.

    Args:
        units: speech units without offset, consecutive duplicates collapsed.
        query_ids: ids of user header, instruction and assistant header.
        vocabulary: the id layout.

    Raises:
        ValueError: there is no unit, or one is out of range.

    Source: `s2t_eval_collate_fn` of Dynin-Omni, for one request (no batch padding).
    """
    return (vocabulary.s2t, *wrap_speech(units, vocabulary), *query_ids)


def speech_to_text_training_head(
    units: Sequence[int], query_ids: Sequence[int], vocabulary: Vocabulary, *, audio_block: int
) -> tuple[int, ...]:
    """The original's training form: `PAD* <|s2t|> <|soa|> units <|eoa|> BOS query`.

    PARITY: it differs from the serving form by the BOS and by padding the audio part to a fixed
    length. Training of our own uses the serving form.

    Args:
        units: speech units without offset; the first `audio_block - 3` are kept.
        query_ids: as in `speech_to_text_head`.
        vocabulary: the id layout.
        audio_block: tokens of the padded audio part, task token included (513 in stages 2 and 3).

    Raises:
        ValueError: there is no unit, or one is out of range.

    Source: `s2t_prompt` of Dynin-Omni.
    """
    audio = [vocabulary.s2t, *wrap_speech(units[: audio_block - 3], vocabulary)]
    padding = [vocabulary.pad] * (audio_block - len(audio))
    return (*padding, *audio, vocabulary.bos, *query_ids)


def answer_start(ids: Sequence[int], vocabulary: Vocabulary) -> int:
    """Where the original starts the training target of a complete dialogue: behind the last header.

    PARITY: the newline behind the assistant header counts as target, and where truncation has
    removed that header the *user's* text becomes the target. Training of our own encodes prompt
    and answer apart and needs no search.

    Args:
        ids: ids of BOS, user turn, assistant header and answer.
        vocabulary: the id layout.

    Returns:
        Index of the first target; 0 where there is no header at all.

    Source: `lm_chat_prompt`, `s2t_prompt`, `v2t_prompt` of Dynin-Omni.
    """
    for index in reversed(range(len(ids))):
        if ids[index] == vocabulary.end_header:
            return index + 1
    return 0
