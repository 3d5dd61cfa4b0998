"""Control tokens by string, and the checks on a tokenizer."""

import pytest

from vllm_dynin.processors.text_tokenizer import (
    check_tokenizer,
    control_string,
    control_strings,
    load_tokenizer,
)
from vllm_dynin.tokens import Vocabulary


def test_control_strings_of_the_published_tokenizer() -> None:
    assert len(control_strings()) == len(set(control_strings())) == 269
    expected = {
        "bos": "<|startoftext|>",
        "eos": "<|endoftext|>",
        "soi": "<|reserved_token_0|>",
        "pad": "<|reserved_token_9|>",
        "ti2ti": "<|reserved_token_19|>",
        "mask": "<|mdm_mask|>",
        "eot": "<|eot_id|>",
    }
    assert {name: control_string(name) for name in expected} == expected
    with pytest.raises(AttributeError):
        control_string("nothing")


def test_a_fitting_tokenizer_loads(tokenizer, vocabulary, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path), vocabulary)
    assert len(loaded) == vocabulary.text.stop
    for index, string in enumerate(control_strings()):
        assert loaded.convert_tokens_to_ids(string) == vocabulary.control.start + index
    text = "A red cube <think> und Käse 漢字"
    assert loaded.decode(loaded.encode(text, add_special_tokens=False)) == text


def test_remote_code_is_refused(vocabulary) -> None:
    with pytest.raises(ValueError, match="brings its own code"):
        load_tokenizer("anywhere", vocabulary, trust_remote_code=True)


def test_length_must_fit(tokenizer, vocabulary) -> None:
    other = Vocabulary(num_text_pieces=vocabulary.num_text_pieces + 1)
    with pytest.raises(ValueError, match=r"len\(tokenizer\) is \d+, but the checkpoint has"):
        check_tokenizer(tokenizer, other)


class Wrapped:
    """The real tokenizer with one property spoiled."""

    def __init__(self, tokenizer, ids=None, extra=()) -> None:
        self.tokenizer, self.ids, self.extra = tokenizer, ids or {}, list(extra)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def convert_tokens_to_ids(self, token):
        return self.ids.get(token, self.tokenizer.convert_tokens_to_ids(token))

    def encode(self, text, *, add_special_tokens):
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return self.extra + ids if add_special_tokens else ids


@pytest.mark.parametrize("string", ["<|start_header_id|>", "<|mdm_mask|>", "<|eot_id|>"])
def test_control_tokens_must_stand_where_expected(tokenizer, vocabulary, string) -> None:
    with pytest.raises(ValueError, match="not a tokenizer of the LLaDA family"):
        check_tokenizer(Wrapped(tokenizer, ids={string: 5}), vocabulary)


def test_a_tokenizer_must_not_add_tokens(tokenizer, vocabulary) -> None:
    check_tokenizer(Wrapped(tokenizer), vocabulary)
    with pytest.raises(ValueError, match="adds 1 tokens"):
        check_tokenizer(Wrapped(tokenizer, extra=[vocabulary.bos]), vocabulary)
