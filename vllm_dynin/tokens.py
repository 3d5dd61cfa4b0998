"""The shared vocabulary: one table of ids for text, control tokens, image codes, speech units.

Dynin-Omni keeps every modality in one embedding table. From row 0 upwards it holds the pieces of
the byte-level BPE, then 269 control tokens, then the image codes, then the speech units, then rows
nobody uses. The layout is therefore fixed by three numbers, and a tiny checkpoint with a small
tokenizer has the same layout at other offsets.

Source: docs of the published tokenizer and `training/prompting_utils.py` of the original; the
image offset is `len(tokenizer)` (126,349), not the row count of the text table (126,464).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

NUM_CONTROL_TOKENS = 269
"""Control tokens behind the BPE pieces, the same in every checkpoint of the family."""

# Offsets within the control tokens. 4..255 are the tokenizer's reserved tokens 0..251, which the
# model uses under the names below although the tokenizer does not know them by these names.
_CONTROL_OFFSETS: dict[str, int] = {
    "bos": 0,
    "eos": 1,
    "soi": 4,
    "eoi": 5,
    "sov": 6,
    "eov": 7,
    "t2i": 8,
    "mmu": 9,
    "t2v": 10,
    "v2v": 11,
    "lvg": 12,
    "pad": 13,
    "r2i": 14,
    "i2i": 15,
    "s2t": 16,
    "soa": 17,
    "eoa": 18,
    "t2s": 19,
    "v2t": 20,
    "s2s": 21,
    "v2s": 22,
    "ti2ti": 23,
    "t2ti": 24,
    "mask": 256,
    "start_header": 266,
    "end_header": 267,
    "eot": 268,
}


class Modality(enum.Enum):
    """What a token id stands for."""

    TEXT = "text"
    CONTROL = "control"
    IMAGE = "image"
    SPEECH = "speech"


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Id ranges of one checkpoint. Ranges are half-open, as Python's `range` is.

    Args:
        num_text_pieces: BPE pieces, ids 0 up to this number.
        num_image_codes: codes of the image tokenizer; 0 for a text-only model.
        num_speech_units: units of the speech tokenizer; 0 where there is none.

    Raises:
        ValueError: a size is negative, or there is no text piece.
    """

    num_text_pieces: int = 126_080
    num_image_codes: int = 8_192
    num_speech_units: int = 4_096

    def __post_init__(self) -> None:
        if self.num_text_pieces < 1 or self.num_image_codes < 0 or self.num_speech_units < 0:
            raise ValueError(
                f"{self!r}: the sizes must not be negative and there must be a text piece; "
                "use the sizes of the checkpoint's tokenizers"
            )

    def __getattr__(self, name: str) -> int:
        """`vocabulary.mask`, `.bos`, `.soi`, …: the id of a control token by its name."""
        try:
            return self.num_text_pieces + _CONTROL_OFFSETS[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no token or field {name!r}") from None

    @property
    def control(self) -> range:
        """Ids of the control tokens."""
        return range(self.num_text_pieces, self.num_text_pieces + NUM_CONTROL_TOKENS)

    @property
    def text(self) -> range:
        """Ids the text tokenizer knows, control tokens included: `range(len(tokenizer))`."""
        return range(0, self.num_text_pieces + NUM_CONTROL_TOKENS)

    @property
    def image(self) -> range:
        """Ids of image codes; code c has id `image.start + c`."""
        return range(self.text.stop, self.text.stop + self.num_image_codes)

    @property
    def speech(self) -> range:
        """Ids of speech units; unit u has id `speech.start + u`."""
        return range(self.image.stop, self.image.stop + self.num_speech_units)

    @property
    def num_used(self) -> int:
        """Rows that mean something; a table may have more."""
        return self.speech.stop

    def modality(self, token_id: int) -> Modality:
        """Which range `token_id` lies in.

        Raises:
            ValueError: the id is negative or behind the last used row.
        """
        if token_id in self.control:
            return Modality.CONTROL
        for modality, ids in (
            (Modality.TEXT, self.text),
            (Modality.IMAGE, self.image),
            (Modality.SPEECH, self.speech),
        ):
            if token_id in ids:
                return modality
        raise ValueError(f"token id {token_id} is outside 0..{self.num_used - 1}")

    def image_ids(self, codes: Iterable[int]) -> list[int]:
        """Token ids of image codes (each in 0 .. num_image_codes - 1).

        Raises:
            ValueError: a code is out of range.
        """
        return _shift(codes, self.image, "image code")

    def speech_ids(self, units: Iterable[int]) -> list[int]:
        """Token ids of speech units (each in 0 .. num_speech_units - 1).

        Raises:
            ValueError: a unit is out of range.
        """
        return _shift(units, self.speech, "speech unit")


def _shift(values: Iterable[int], ids: range, what: str) -> list[int]:
    shifted = [ids.start + int(value) for value in values]
    for token_id in shifted:
        if token_id not in ids:
            raise ValueError(f"{what} {token_id - ids.start} is outside 0..{len(ids) - 1}")
    return shifted


DYNIN_OMNI = Vocabulary()
"""The vocabulary of `snu-aidas/Dynin-Omni`."""
