"""Files written as text: base64 as browsers and SDKs send it, and the data URLs around it.

Decoded as the web does it (WHATWG "forgiving base64", RFC 4648 §5, RFC 2397): white space means
nothing, padding may be missing, `-` and `_` stand for `+` and `/`, and a data URL may be written
in capitals and with percent signs. Anything else is refused: a decoder that skips what it does not
know would hand a damaged file to the next one.
"""

from __future__ import annotations

import binascii
from urllib.parse import unquote_to_bytes

from vllm_dynin.processors.codecs.limits import DEFAULT_LIMITS, MediaError, MediaLimits

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_WHITE_SPACE = b" \t\n\r\f\v"
_RULE = (
    "base64 is written with A–Z, a–z, 0–9, + and / (or - and _), in lines or not, with or without "
    "= at its end"
)


def is_data_url(text: str) -> bool:
    """Whether a text is a data URL, in capitals or not."""
    return text[:64].lstrip().lower().startswith("data:")


def split_data_url(url: str) -> tuple[str, str]:
    """The media type of a data URL, in small letters and without parameters, and its base64.

    Args:
        url: `data:[TYPE][;PARAMETER=VALUE]…;base64,BASE64`.

    Raises:
        MediaError: it has no comma, or does not say base64.
    """
    head, comma, data = url.partition(",")
    what = f"the data URL {url.lstrip()[:32]!r}"
    if not comma or not is_data_url(url):
        raise MediaError(f"{what} has no comma; write data:TYPE;base64,BASE64")
    media_type, *parameters = (part.strip().lower() for part in head.partition(":")[2].split(";"))
    if "base64" not in parameters:
        raise MediaError(f"{what} does not say ;base64 before its comma; write data:TYPE;base64,…")
    return media_type, data


def from_base64(text: str | bytes, limits: MediaLimits = DEFAULT_LIMITS) -> bytes:
    """The bytes of base64, or of a data URL that holds it.

    Args:
        text: base64 in either alphabet, in one line or several, padded or not; or a data URL.
        limits: `max_bytes` holds for the result and is checked before anything is decoded.

    Raises:
        MediaError: nothing in it, a character that is not of the alphabet, cut off, or too large.
    """
    written = _as_ascii(text) if isinstance(text, str) else text
    if b"%" in written:  # of a URL: %2B, %3D, %0A
        written = unquote_to_bytes(written)
    limits.check("max_bytes", len(written) * 3 // 4 - 2, "the size in bytes")
    packed = written.translate(_TO_STANDARD, _WHITE_SPACE).rstrip(b"=")
    if not packed:
        raise MediaError("the base64 is empty; send the file's bytes in base64")
    if strange := packed.translate(None, _ALPHABET):
        raise _unknown(chr(strange[0]), written.index(strange[:1]))
    if len(packed) % 4 == 1:
        raise MediaError(
            f"the base64 has {len(packed)} characters, which no file has: its end or a part of it "
            "is missing; send all of it"
        )
    return binascii.a2b_base64(packed + b"=" * (-len(packed) % 4))


def _as_ascii(text: str) -> bytes:
    if is_data_url(text):
        _, text = split_data_url(text)
    try:
        return text.encode("ascii")
    except UnicodeEncodeError as error:
        raise _unknown(text[error.start], error.start) from None


def _unknown(character: str, position: int) -> MediaError:
    return MediaError(f"character {position} of the base64 is {character!r}; {_RULE}")
