"""Prompts that are answered in speech. They end in `<|soa|>`; nothing follows the units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm_dynin.processors.templates.pieces import (
    Overflow,
    left_padded,
    with_bos,
    wrap_image,
    wrap_speech,
)
from vllm_dynin.tokens import Vocabulary

SPEECH_TEXT_BLOCK = 1025
"""Tokens of the text block of speech synthesis: `max_seq_length_text` 1,024 and one more."""
VIDEO_TEXT_BLOCK = 128
"""Tokens of the text block of video to speech: `max_seq_length`; no script of the original runs
this direction, so the length is ours to choose."""


def text_to_speech_head(
    query_ids: Sequence[int],
    vocabulary: Vocabulary,
    *,
    text_block: int = SPEECH_TEXT_BLOCK,
    overflow: Overflow = "refuse",
) -> tuple[int, ...]:
    """`[PAD* <|t2s|> BOS query EOS] <|soa|>`, the bracket padded to `text_block`.

    Args:
        query_ids: ids of user header, instruction, newline, sentence and assistant header.
        vocabulary: the id layout.
        text_block: tokens of the bracket (128 or 129 in the training configurations).
        overflow: what to do with a longer text.

    Raises:
        ValueError: the text does not fit and `overflow` is `refuse`.

    Source: `t2s_gen_prompt` of Dynin-Omni.
    """
    content = [vocabulary.t2s, *with_bos(query_ids, vocabulary), vocabulary.eos]
    return (*left_padded(content, text_block, vocabulary, overflow), vocabulary.soa)


def speech_to_speech_head(
    units: Sequence[int],
    vocabulary: Vocabulary,
    *,
    user_header_ids: Sequence[int],
    assistant_turn_ids: Sequence[int],
    images: Sequence[Sequence[int]] = (),
) -> tuple[int, ...]:
    """`<|s2s|> H_u (<|soi|> image <|eoi|>)* <|soa|> units <|eoa|> H_a <|soa|>`.

    Args:
        units: speech units of the question, without offset.
        vocabulary: the id layout.
        user_header_ids: ids of the user header, encoded on their own.
        assistant_turn_ids: ids of end of turn and assistant header, encoded on their own.
        images: codes of images the question is about.

    Raises:
        ValueError: there is no unit, or a unit or code is out of range.

    Source: `s2s_gen_prompt` of Dynin-Omni.
    """
    media = [token for codes in images for token in wrap_image(codes, vocabulary)]
    return (
        vocabulary.s2s,
        *user_header_ids,
        *media,
        *wrap_speech(units, vocabulary),
        *assistant_turn_ids,
        vocabulary.soa,
    )


def video_to_speech_head(
    frames: Sequence[Sequence[int]],
    text_ids: Sequence[int],
    vocabulary: Vocabulary,
    *,
    text_block: int = VIDEO_TEXT_BLOCK,
    overflow: Overflow = "refuse",
) -> tuple[int, ...]:
    """`<|v2s|> <|soi|> frames <|eoi|> [BOS text EOS EOS*] <|soa|>`.

    PARITY: the bracket is filled with EOS on the right, and the model sees it.

    Args:
        frames: codes of each frame, in temporal order.
        text_ids: ids of the question.
        vocabulary: the id layout.
        text_block: tokens of the bracket.
        overflow: what to do with a longer text.

    Raises:
        ValueError: there is no frame, a code is out of range, or the text does not fit.

    Source: `v2s_gen_prompt` of Dynin-Omni.
    """
    content = [*with_bos(text_ids, vocabulary), vocabulary.eos]
    content += [vocabulary.eos] * (text_block - len(content))
    block = left_padded(content, text_block, vocabulary, overflow)
    codes = [code for frame in frames for code in frame]
    return (vocabulary.v2s, *wrap_image(codes, vocabulary), *block, vocabulary.soa)


def read_units(ids: Iterable[int], vocabulary: Vocabulary) -> list[int]:
    """Speech units of a generated region, up to the first id that is none.

    End of audio and EOS end the speech; a slot left masked does too.

    Args:
        ids: token ids of the region's slots, in order.
        vocabulary: the id layout.

    Returns:
        Units in 0 .. num_speech_units - 1, without offset; may be empty.

    Source: `t2s_generate_mmu_like` of Dynin-Omni, output mapping.
    """
    units = []
    for token_id in ids:
        if token_id not in vocabulary.speech:
            break
        units.append(token_id - vocabulary.speech.start)
    return units
