"""Configurations as flat settings: printed, told apart, changed by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from vllm_dynin.canvas import Parity, Task
from vllm_dynin.training_ext import settings


@dataclass(frozen=True, kw_only=True)
class Inner:
    low: int = 1
    high: int = 5
    rate: float = 0.1
    limit: int | None = None
    kind: Literal["a", "b"] = "a"

    def __post_init__(self):
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = "x y"
    parity: Parity = Parity.DEFAULT
    is_on: bool = False
    betas: tuple[float, float] = (0.9, 0.99)
    words: tuple[str, ...] = ()
    tasks: Mapping[Task, Inner] = field(
        default_factory=lambda: {Task.TEXT_TO_TEXT: Inner(), Task.TEXT_TO_IMAGE: Inner(high=9)}
    )
    inner: Inner = Inner()


def test_every_setting_has_a_name_and_a_line():
    assert settings.render(Outer()).splitlines()[:7] == [
        "name = x y",
        "parity = default",
        "is_on = False",
        "betas = [0.9, 0.99]",
        "words = []",
        "tasks.t2t.low = 1",
        "tasks.t2t.high = 5",
    ]
    assert settings.flatten(Outer())["tasks.t2i.high"] == 9


def test_what_is_printed_can_be_read_again():
    lines = settings.render(Outer(words=("one", "2"), name="7")).splitlines()
    read = settings.override(
        Outer(), settings.parse_overrides([n.replace(" = ", "=", 1) for n in lines])
    )
    assert read == Outer(words=("one", "2"), name="7")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("name", "three", "three"),
        ("name", "3", "3"),
        ("parity", "reference", Parity.REFERENCE),
        ("is_on", "true", True),
        ("is_on", "False", False),
        ("betas", "[0.8, 1]", (0.8, 1.0)),
        ("words", "['a', 'b']", ("a", "b")),
        ("tasks.t2i.rate", "1", 1.0),
        ("tasks.t2i.rate", "1e-3", 0.001),
        ("tasks.t2i.limit", "7", 7),
        ("inner.limit", "none", None),
        ("inner.kind", "b", "b"),
    ],
)
def test_a_setting_is_changed_in_a_copy(name, text, expected):
    before = Outer()
    after = settings.override(before, {name: text})
    changed = settings.flatten(after)[name]
    assert changed == expected and type(changed) is type(expected)
    assert before == Outer()
    is_new = settings.flatten(before)[name] != expected
    assert [line.split(":")[0] for line in settings.differences(before, after)] == [name] * is_new


def test_settings_of_one_part_are_changed_together():
    """5 as the low end is above the old high end, but not above the new one."""
    after = settings.override(Outer(), {"inner.low": "7", "inner.high": "8"})
    assert (after.inner.low, after.inner.high) == (7, 8)
    with pytest.raises(ValueError, match="low=7 is above high=5"):
        settings.override(Outer(), {"inner.low": "7"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inner.highs": "1"}, r"no setting 'inner\.highs'; did you mean inner\.high\?"),
        ({"inner": "1"}, "no setting 'inner'"),
        ({"tasks.t2t.low": "1.5"}, r"tasks\.t2t\.low='1\.5': this setting takes int"),
        ({"inner.limit": "x"}, r"inner\.limit='x': this setting takes int or NoneType"),
        ({"is_on": "1"}, "is_on='1': this setting takes bool"),
        ({"inner.kind": "c"}, "this setting takes 'a' or 'b'"),
        ({"parity": "other"}, "this setting takes default or reference"),
        ({"betas": "[1]"}, "betas="),
        ({"inner.low": "True"}, r"inner\.low='True': this setting takes int"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        settings.override(Outer(), given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["a"], "'a' is no setting"), (["=1"], "is no setting"), (["a=1", "a=2"], "set twice")],
)
def test_arguments_are_name_and_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        settings.parse_overrides(arguments)
    assert settings.parse_overrides(["a=1=2"]) == {"a": "1=2"}


def test_what_only_one_has_is_one_line():
    one = Outer(tasks={Task.TEXT_TO_TEXT: Inner()})
    two = Outer(tasks={Task.TEXT_TO_TEXT: Inner(low=2), Task.TEXT_TO_IMAGE: Inner()}, is_on=True)
    assert settings.differences(one, two) == [
        "is_on: False → True",
        "tasks.t2t.low: 1 → 2",
        "tasks.t2i: only in the second",
    ]
    assert settings.differences(two, one)[-1] == "tasks.t2i: only in the first"
