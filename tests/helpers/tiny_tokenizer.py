"""A small real tokenizer with the family's control tokens at the family's offsets."""

from transformers import PreTrainedTokenizerFast

from vllm_dynin.processors.train_tokenizer import train_tokenizer

TEXTS = [
    "Describe the picture in detail, please. user assistant system",
    "A red cube stands on a blue table beside two green spheres.\n/think /no_think <think>",
    "What does the speaker in the audio say? Transcribe the given audio.",
]


def make_tokenizer(num_pieces: int = 320) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `num_pieces` pieces with the control tokens behind them."""
    return train_tokenizer(TEXTS, num_pieces)
