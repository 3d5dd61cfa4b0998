"""Texts of requests that say nothing, refused: the model would make something up."""

from __future__ import annotations

import unicodedata

_UNSEEN = "\u2800\u3164\u115f\u1160\uffa0"
"""Letters and symbols, as Unicode sorts them, that show nothing."""


def refuse_blank(text: str, what: str) -> None:
    """Refuse a text without a visible character.

    Args:
        text: of the request.
        what: it is, for the message.

    Raises:
        ValueError: it has none.
    """
    if not any(unicodedata.category(char)[0] in "LNPS" and char not in _UNSEEN for char in text):
        raise ValueError(
            f"{what} is blank: {text[:20]!r} has no visible character; say what the image is to "
            "show"
        )


def refuse_unspeakable(text: str) -> None:
    """Refuse a text without a letter or a digit: nothing in it can be said.

    Raises:
        ValueError: it has neither.
    """
    if not any(unicodedata.category(char)[0] in "LN" and char not in _UNSEEN for char in text):
        raise ValueError(
            f"there is no text to speak: {text[:20]!r} has no letter and no digit; send the words "
            "to say"
        )
