"""Tests that share an engine stay in one process, where the suite runs in several."""

from pathlib import Path

from helpers.processes import SHARING, group

ROOT = Path(__file__).parents[2]


def test_folders_that_share_are_all_there() -> None:
    """Each folder of the engine tier with a conftest of its own is one of them, and no other."""
    sharing = {path.parent for path in (ROOT / "tests" / "engine").glob("*/conftest.py")}
    assert sharing == {ROOT / folder for folder in SHARING}


def test_other_tests_stay_with_their_file() -> None:
    assert group("tests/engine/http/test_chat.py::test_a[x::y]") == "tests/engine/http/"
    assert group("tests/engine/test_starts.py::test_a") == "tests/engine/test_starts.py"
    assert group("tests/unit/http/test_chat.py::Test::test_a") == "tests/unit/http/test_chat.py"
