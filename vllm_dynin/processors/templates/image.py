"""Prompts that are answered with an image. They end in `<|soi|>`; `<|eoi|>` follows the codes."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_dynin.processors.templates.pieces import Overflow, left_padded, with_bos, wrap_image
from vllm_dynin.tokens import Vocabulary

IMAGE_TEXT_BLOCK = 129
"""Tokens of the text block: the demo configuration's 128 and one more.

Training configurations of the original use 128 for text to image and 129 for editing.
"""


def text_to_image_head(
    text_ids: Sequence[int],
    vocabulary: Vocabulary,
    *,
    text_block: int = IMAGE_TEXT_BLOCK,
    overflow: Overflow = "refuse",
) -> tuple[int, ...]:
    """`[PAD* <|t2i|> BOS text EOS] <|soi|>`, the bracket padded to `text_block`.

    Args:
        text_ids: ids of the plain prompt (no chat headers); empty for "no prompt".
        vocabulary: the id layout.
        text_block: tokens of the bracket.
        overflow: what to do with a longer text.

    Raises:
        ValueError: the text does not fit and `overflow` is `refuse`.

    Source: `t2i_gen_prompt` of Dynin-Omni.
    """
    content = [vocabulary.t2i, *with_bos(text_ids, vocabulary), vocabulary.eos]
    return (*left_padded(content, text_block, vocabulary, overflow), vocabulary.soi)


def image_to_image_head(
    sources: Sequence[Sequence[int]],
    text_ids: Sequence[int],
    vocabulary: Vocabulary,
    *,
    text_block: int = IMAGE_TEXT_BLOCK,
    overflow: Overflow = "refuse",
) -> tuple[int, ...]:
    """`<|i2i|> (<|soi|> source <|eoi|>)+ [PAD* BOS text EOS] <|soi|>`: padding in the middle.

    Args:
        sources: codes of each source image; the model was trained with one.
        text_ids: ids of the instruction.
        vocabulary: the id layout.
        text_block: tokens of the bracket.
        overflow: what to do with a longer text.

    Raises:
        ValueError: there is no source, a code is out of range, or the text does not fit.

    Source: `i2i_prompt` of Dynin-Omni, dropout 0.
    """
    block = _edit_block(text_ids, vocabulary, text_block, overflow)
    return (vocabulary.i2i, *_wrapped(sources, vocabulary), *block, vocabulary.soi)


def image_to_image_alternative_head(
    sources: Sequence[Sequence[int]],
    text_ids: Sequence[int],
    vocabulary: Vocabulary,
    *,
    text_block: int = IMAGE_TEXT_BLOCK,
    overflow: Overflow = "refuse",
) -> tuple[int, ...]:
    """The original's other editing prompt: task token `<|t2i|>`, BOS and EOS twice.

    `<|t2i|> (<|soi|> source <|eoi|>)+ BOS [PAD* BOS text EOS] EOS <|soi|>`. Arguments and errors
    as in `image_to_image_head`.

    Source: `i2i_gen_prompt` of Dynin-Omni (`--no-use_train_i2i_prompt`).
    """
    block = _edit_block(text_ids, vocabulary, text_block, overflow)
    media = _wrapped(sources, vocabulary)
    return (
        vocabulary.t2i,
        *media,
        vocabulary.bos,
        *block,
        vocabulary.eos,
        vocabulary.soi,
    )


def text_image_to_text_image_head(
    sources: Sequence[Sequence[int]],
    text_ids: Sequence[int],
    vocabulary: Vocabulary,
    *,
    text_block: int = IMAGE_TEXT_BLOCK,
    overflow: Overflow = "refuse",
) -> tuple[int, ...]:
    """`<|ti2ti|> (<|soi|> source <|eoi|>)+ [PAD* BOS text EOS] <|soi|>`.

    Arguments and errors as in `image_to_image_head`.

    Source: `ti2ti_gen_prompt` of Dynin-Omni.
    """
    block = _edit_block(text_ids, vocabulary, text_block, overflow)
    return (vocabulary.ti2ti, *_wrapped(sources, vocabulary), *block, vocabulary.soi)


def _wrapped(sources: Sequence[Sequence[int]], vocabulary: Vocabulary) -> list[int]:
    if not sources:
        raise ValueError("editing needs a source image; give one, or use text to image")
    return [token for codes in sources for token in wrap_image(codes, vocabulary)]


def _edit_block(
    text_ids: Sequence[int], vocabulary: Vocabulary, text_block: int, overflow: Overflow
) -> list[int]:
    content = [*with_bos(text_ids, vocabulary), vocabulary.eos]
    return left_padded(content, text_block, vocabulary, overflow)
