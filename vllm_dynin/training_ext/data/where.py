"""Conditions on the columns of a row: `score > 8`. Rows that fail are left out, and are not bad."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_dynin.training_ext.data.bad import BadKind, BadSample
from vllm_dynin.training_ext.data.rows import Row

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(rf"\s*([^<>=!]+?)\s*({'|'.join(_OPERATORS)})\s*(.+?)\s*")


@dataclass(frozen=True)
class Condition:
    """One condition.

    Args:
        column: of the row.
        sign: one of `>= <= == != > <`.
        value: a number, or text.
    """

    column: str
    sign: str
    value: float | str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read `column sign value`; a value that is a number is compared as one.

        Raises:
            ValueError: it has another form.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError(
                f"condition {text!r} must be COLUMN, one of {' '.join(_OPERATORS)}, and a value, "
                "e.g. 'score > 8'"
            )
        try:
            value: float | str = float(match[3])
        except ValueError:
            value = match[3]
        return cls(match[1], match[2], value)

    def holds(self, row: Row) -> bool:
        """Whether a row meets it.

        Raises:
            BadSample: the row has no such column, or no number or text where the value is one.
        """
        found = row.fields.get(self.column)
        is_number = isinstance(found, int | float)
        if is_number != isinstance(self.value, float) or not isinstance(found, int | float | str):
            raise BadSample(
                BadKind.FIELDS,
                f"column {self.column} is {found!r}, which cannot be compared with {self.value!r}",
            )
        return _OPERATORS[self.sign](found, self.value)
