"""The 126 speaking styles of the speech decoder, by name.

A style is gender × emotion × speed × pitch. Row r of a checkpoint's style table belongs to the
r-th name of the alphabetical product, unless its config.json brings its own `u2s_style2idx`.

Source: order of `condition2style_centroid.txt` of EMOVA_speech_tokenizer @ ae4b1b5.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

GENDERS = ("female", "male")
EMOTIONS = ("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")
SPEEDS = ("fast", "normal", "slow")
PITCHES = ("high", "low", "normal")


@dataclass(frozen=True, kw_only=True)
class Style:
    """One speaking style. Its `name` is the spelling that requests and checkpoints use.

    Raises:
        ValueError: a part is not one of the listed values.
    """

    gender: str = "female"
    emotion: str = "neutral"
    speed: str = "normal"
    pitch: str = "normal"

    def __post_init__(self) -> None:
        for part, allowed in _PARTS.items():
            value = getattr(self, part)
            if value not in allowed:
                raise ValueError(f"{part}={value!r}: a style's {part} is one of {_listed(allowed)}")

    @property
    def name(self) -> str:
        """`gender-…_emotion-…_speed-…_pitch-…`."""
        return "_".join(f"{part}-{getattr(self, part)}" for part in _PARTS)


_PARTS: dict[str, tuple[str, ...]] = {
    "gender": GENDERS,
    "emotion": EMOTIONS,
    "speed": SPEEDS,
    "pitch": PITCHES,
}


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(values)


STYLES: tuple[Style, ...] = tuple(
    Style(gender=g, emotion=e, speed=s, pitch=p)
    for g, e, s, p in product(GENDERS, EMOTIONS, SPEEDS, PITCHES)
)
"""All styles; the position of a style is its row in the style table."""

DEFAULT_STYLE = Style()


def parse_style(name: str) -> Style:
    """The style of a name such as `gender-male_emotion-happy_speed-fast_pitch-low`.

    Parts may stand in any order and may be left out (they then have the default's value), so
    `emotion-sad` is a style too. Case and surrounding space do not matter.

    Raises:
        ValueError: an unknown part or value, or a part given twice; the message lists what exists.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"style={name!r}: a style is a name such as {DEFAULT_STYLE.name!r}, not a "
            f"{type(name).__name__}"
        )
    parts: dict[str, str] = {}
    for piece in name.strip().lower().split("_"):
        part, _, value = piece.partition("-")
        if part not in _PARTS or part in parts or value not in _PARTS[part]:
            raise ValueError(_complaint(name, part, value, is_repeated=part in parts))
        parts[part] = value
    return Style(**parts)


def _complaint(name: str, part: str, value: str, *, is_repeated: bool) -> str:
    where = f"style={name!r}"
    if is_repeated:
        return f"{where} gives {part!r} twice; give it once"
    if part not in _PARTS:
        return (
            f"{where}: {part!r} is not a part of a style; write for example "
            f"{DEFAULT_STYLE.name!r} (parts: {', '.join(_PARTS)})"
        )
    close = difflib.get_close_matches(value, _PARTS[part], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{where}: {part} is one of {_listed(_PARTS[part])}, not {value!r}{hint}"


class StyleTable:
    """Rows of a checkpoint's style embedding by style.

    Args:
        style_to_row: `u2s_style2idx` of config.json; None for the alphabetical order.
        num_rows: rows of the embedding.

    Raises:
        ValueError: a name is not a style's, a row is outside the table, or two names share a row.
    """

    def __init__(self, style_to_row: Mapping[str, int] | None = None, num_rows: int = 126) -> None:
        if style_to_row is None:
            style_to_row = {style.name: row for row, style in enumerate(STYLES[:num_rows])}
        self._rows: dict[str, int] = {}
        for name, row in style_to_row.items():
            if not 0 <= int(row) < num_rows:
                raise ValueError(
                    f"u2s_style2idx[{name!r}]={row} is outside the {num_rows} rows of the style "
                    "embedding; config.json and weights do not belong together"
                )
            self._rows[parse_style(name).name] = int(row)
        if len(set(self._rows.values())) != len(style_to_row):
            raise ValueError(
                f"u2s_style2idx names {len(style_to_row)} styles but only "
                f"{len(set(self._rows.values()))} distinct rows; each style has its own"
            )

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def names(self) -> list[str]:
        """Names of the styles the checkpoint has, in row order."""
        return sorted(self._rows, key=self._rows.__getitem__)

    def row(self, style: Style | str) -> int:
        """Row of the style embedding.

        Raises:
            ValueError: no such style, or this checkpoint does not have it.
        """
        name = (style if isinstance(style, Style) else parse_style(style)).name
        if name not in self._rows:
            raise ValueError(
                f"style {name!r} is not in this checkpoint, which has {len(self._rows)} styles, "
                f"for example {self.names[0]!r}"
            )
        return self._rows[name]
