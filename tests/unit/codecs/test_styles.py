import pytest

from vllm_dynin.processors.codecs.styles import (
    DEFAULT_STYLE,
    STYLES,
    Style,
    StyleTable,
    parse_style,
)


def test_rows_of_the_published_order():
    table = StyleTable()
    assert len(STYLES) == len(table) == 126
    for name, row in {
        "gender-female_emotion-angry_speed-fast_pitch-high": 0,
        "gender-female_emotion-neutral_speed-normal_pitch-normal": 41,
        "gender-male_emotion-neutral_speed-normal_pitch-normal": 104,
        "gender-male_emotion-surprised_speed-slow_pitch-normal": 125,
    }.items():
        assert table.row(name) == row
        assert table.names[row] == name
        assert STYLES[row].name == name
    assert table.row(DEFAULT_STYLE) == 41


def test_every_name_reads_back():
    assert [parse_style(style.name) for style in STYLES] == list(STYLES)


def test_parts_may_be_left_out_and_reordered():
    assert parse_style(" Pitch-LOW_gender-male ") == Style(gender="male", pitch="low")
    assert parse_style("emotion-sad") == Style(emotion="sad")


@pytest.mark.parametrize(
    "name, words",
    [
        ("emotion-hapy", ["emotion is one of", "did you mean 'happy'?"]),
        ("gender-female_gender-male", ["gives 'gender' twice"]),
        ("volume-loud", ["'volume' is not a part", "gender, emotion, speed, pitch"]),
        ("", ["is not a part of a style"]),
        ("gender", ["gender is one of female, male"]),
        ("gender-female_", ["is not a part of a style"]),
        (7, ["not a int"]),
        (None, ["not a NoneType"]),
    ],
)
def test_wrong_names_say_what_exists(name, words):
    with pytest.raises(ValueError) as error:
        parse_style(name)
    assert repr(name) in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_wrong_part_is_refused():
    with pytest.raises(ValueError, match="speed='quick': a style's speed is one of"):
        Style(speed="quick")


def test_a_checkpoints_own_table():
    table = StyleTable({"emotion-sad": 1, "emotion-happy": 0}, num_rows=2)
    assert table.row("gender-female_emotion-sad_speed-normal_pitch-normal") == 1
    assert [parse_style(name).emotion for name in table.names] == ["happy", "sad"]
    with pytest.raises(ValueError, match="not in this checkpoint, which has 2 styles"):
        table.row("emotion-angry")


@pytest.mark.parametrize(
    "rows, message",
    [
        ({"emotion-sad": 2}, "outside the 2 rows"),
        ({"emotion-sad": -1}, "outside the 2 rows"),
        ({"emotion-sad": 0, "emotion-happy": 0}, "only 1 distinct rows"),
        ({"emotion-bored": 0}, "emotion is one of"),
    ],
)
def test_a_broken_table_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        StyleTable(rows, num_rows=2)
