"""A small real tokenizer with the family's control tokens at the family's offsets."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vllm_dynin.processors.chat import CHAT_TEMPLATE
from vllm_dynin.processors.text_tokenizer import control_strings

TEXTS = [
    "Describe the picture in detail, please. user assistant system",
    "A red cube stands on a blue table beside two green spheres.\n/think /no_think <think>",
    "What does the speaker in the audio say? Transcribe the given audio.",
]


def make_tokenizer(num_pieces: int = 320) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `num_pieces` pieces with the control tokens behind them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_pieces,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(string, special=True, normalized=False) for string in control_strings()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )
