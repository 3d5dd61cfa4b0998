"""Voices: the names OpenAI's clients know, and the styles of the speech codec behind them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from vllm_dynin.processors.codecs.styles import Style, parse_style

VOICES: dict[str, Style] = {
    "female": Style(),
    "male": Style(gender="male"),
    "alloy": Style(),
    "ash": Style(gender="male"),
    "ballad": Style(gender="male", speed="slow"),
    "cedar": Style(gender="male", speed="slow", pitch="low"),
    "coral": Style(speed="fast"),
    "echo": Style(gender="male", pitch="high"),
    "fable": Style(gender="male", speed="fast"),
    "marin": Style(speed="slow"),
    "nova": Style(speed="fast", pitch="high"),
    "onyx": Style(gender="male", pitch="low"),
    "sage": Style(speed="slow", pitch="low"),
    "shimmer": Style(pitch="high"),
    "verse": Style(gender="male", speed="fast", pitch="high"),
}
"""Friendly names. All are neutral in emotion, which every codec has; they are not OpenAI's
voices."""


class VoiceId(BaseModel):
    """A voice, as some clients write it."""

    model_config = ConfigDict(extra="forbid")

    id: str


def name_of(voice: str | VoiceId) -> str:
    """Name of a voice, however it is written."""
    return voice if isinstance(voice, str) else voice.id


def style_of(voice: str) -> str:
    """Name of the style of a voice: a friendly name, or a style as `parse_style` reads it.

    Raises:
        ValueError: neither.
    """
    name = voice.strip().lower()
    if name in VOICES:
        return VOICES[name].name
    try:
        return parse_style(name).name
    except ValueError as error:
        if "-" in name:
            raise
        raise ValueError(
            f"voice={voice[:80]!r} is not one of {', '.join(VOICES)}; or write a style such as "
            "'gender-male_emotion-happy'"
        ) from error
