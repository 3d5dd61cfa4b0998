"""The text tokenizer: its control tokens by string, how it is loaded, and what is checked of it.

The model's own names for the control tokens (`tokens.Vocabulary`) are not the tokenizer's: most are
reserved tokens there. Inside a prompt *string* a control token must be written as the tokenizer
spells it, which `control_string` tells.

Source: `tokenizer_config.json` of GSAI-ML/LLaDA-8B-Instruct, which Dynin-Omni uses unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Protocol, cast

from vllm_dynin.config import CONFIG_CLASSES
from vllm_dynin.tokens import DYNIN_OMNI, NUM_CONTROL_TOKENS, Vocabulary

_MASK_NUMBER = 252  # the reserved token that became the mask


@cache
def control_strings() -> tuple[str, ...]:
    """Strings of the 269 control tokens, in the order of their ids."""
    reserved = [f"<|reserved_token_{number}|>" for number in range(256)]
    reserved[_MASK_NUMBER] = "<|mdm_mask|>"
    roles = ["<role>", "</role>"]
    numbers = [f"<|{what}_{end}|>" for what in ("arithmetic", "number") for end in ("start", "end")]
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    first = ["<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]"]
    strings = (*first, *reserved, *roles, *numbers, *headers)
    assert len(strings) == NUM_CONTROL_TOKENS
    return strings


def control_string(name: str) -> str:
    """How the tokenizer spells the control token that `Vocabulary` calls `name`.

    Raises:
        AttributeError: no control token has this name.
    """
    return control_strings()[getattr(DYNIN_OMNI, name) - DYNIN_OMNI.control.start]


def spelled(token_ids: Iterable[int], vocabulary: Vocabulary) -> str:
    """How a text spells control tokens.

    Args:
        token_ids: of control tokens.
        vocabulary: the id layout they are of.
    """
    return "".join(control_strings()[token - vocabulary.control.start] for token in token_ids)


class TextTokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    def __len__(self) -> int: ...

    def convert_tokens_to_ids(self, tokens: str) -> Any:
        """Id of a token given by its string."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> str:
        """Text of ids."""


def encode_text(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Ids of a text, nothing added.

    Raises:
        ValueError: it holds half a character, which the tokenizer cannot read.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds half a character (\\u{ord(text[error.start]):04x}, a lone surrogate), "
            "which is no text; give whole characters"
        ) from None
    return tokenizer.encode(text, add_special_tokens=False)


def load_tokenizer(path: str, vocabulary: Vocabulary, **options: Any) -> TextTokenizer:
    """Load a Hugging Face tokenizer, without remote code, and check it against the vocabulary.

    Args:
        path: directory or hub name.
        vocabulary: the id layout of the checkpoint it is to serve.
        options: passed on to `AutoTokenizer.from_pretrained` (`revision`, `token`, …).

    Raises:
        ValueError: `trust_remote_code` is asked for, or the tokenizer does not fit (see
            `check_tokenizer`).
    """
    if options.pop("trust_remote_code", False):
        raise ValueError(
            "trust_remote_code=True: a tokenizer that brings its own code is not loaded; "
            "drop the option, the published tokenizer needs no code"
        )
    from transformers import AutoConfig, AutoTokenizer  # heavy; the templates work without them

    # The tokenizer's loader reads config.json too, and warns of a `model_type` it does not know.
    for config_class in CONFIG_CLASSES:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    tokenizer = cast(
        TextTokenizer, AutoTokenizer.from_pretrained(path, trust_remote_code=False, **options)
    )
    check_tokenizer(tokenizer, vocabulary)
    return tokenizer


def check_tokenizer(tokenizer: TextTokenizer, vocabulary: Vocabulary) -> None:
    """Check that the tokenizer has the id layout of `vocabulary` and adds nothing of its own.

    Image codes start at `len(tokenizer)`, so one token more or less shifts every medium.

    Raises:
        ValueError: the number of tokens differs, a control token stands elsewhere, or encoding
            adds a token (a BOS, say) that the prompt templates do not know of.
    """
    if len(tokenizer) != vocabulary.text.stop:
        raise ValueError(
            f"len(tokenizer) is {len(tokenizer)}, but the checkpoint has {vocabulary.text.stop} "
            "text ids; use the tokenizer the checkpoint was trained with, or set text_vocab_size "
            "in config.json"
        )
    # The names that decide layout and decoding; their neighbours are reserved tokens.
    for name in ("bos", "eos", "mask", "start_header", "end_header", "eot"):
        string, expected = control_string(name), getattr(vocabulary, name)
        found = tokenizer.convert_tokens_to_ids(string)
        if found != expected:
            raise ValueError(
                f"the tokenizer gives {string} the id {found}, the checkpoint expects {expected}; "
                "this is not a tokenizer of the LLaDA family"
            )
    extra = len(tokenizer.encode("", add_special_tokens=True))
    if extra:
        raise ValueError(
            f"the tokenizer adds {extra} tokens to every text; set add_bos_token and "
            "add_eos_token to false, the prompt templates place BOS and EOS themselves"
        )
