"""A small byte-level BPE tokenizer in the layout of the published one.

The pieces come first, then the 269 control tokens at the offsets `tokens.py` gives them, so a tiny
checkpoint differs from the 8B one in numbers only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vllm_dynin.processors.chat import CHAT_TEMPLATE
from vllm_dynin.processors.text_tokenizer import (
    TextTokenizer,
    check_tokenizer,
    control_string,
    control_strings,
)
from vllm_dynin.tokens import Vocabulary

NUM_BYTES = 256


def train_tokenizer(texts: Iterable[str], num_pieces: int) -> PreTrainedTokenizerFast:
    """Train the pieces on `texts` and put the control tokens behind them.

    Args:
        texts: what the pieces are learnt from; equal texts give an equal tokenizer.
        num_pieces: wanted pieces, the 256 bytes included.

    Returns:
        A Hugging Face tokenizer with `len(tokenizer) == num_pieces + 269` and the family's chat
        template, that adds nothing to what it encodes.

    Raises:
        ValueError: fewer than 256 pieces are asked for, or the texts do not yield that many.
    """
    if num_pieces < NUM_BYTES:
        raise ValueError(f"num_pieces={num_pieces}; the bytes alone take {NUM_BYTES}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_pieces,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != num_pieces:
        raise ValueError(
            f"the texts yield {tokenizer.get_vocab_size()} pieces, not num_pieces={num_pieces}; "
            "give more varied text or ask for fewer pieces"
        )
    tokenizer.add_special_tokens(
        [AddedToken(string, special=True, normalized=False) for string in control_strings()]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=control_string("bos"),
        eos_token=control_string("eos"),
        pad_token=control_string("eos"),  # EOS is the filler; `[iPAD]` pads prompts
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    # transformers types the tokenizer's `decode` more widely than our protocol.
    check_tokenizer(cast(TextTokenizer, wrapped), Vocabulary(num_text_pieces=num_pieces))
    return wrapped
