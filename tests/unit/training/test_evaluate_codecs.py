"""Models without codecs borrow those of another checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_dynin.processors.media import IMAGE_CODEC, SPEECH_CODEC
from vllm_dynin.training_ext.evaluate.ablations.codecs import with_codecs


def folder(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).mkdir(parents=True)
        (path / name / "which").write_text(path.name)
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(path.name)
    return path


def test_codecs_come_from_the_other_and_own_ones_stay(tmp_path) -> None:
    model = folder(tmp_path / "model", IMAGE_CODEC)
    other = folder(tmp_path / "other", IMAGE_CODEC, SPEECH_CODEC)
    with with_codecs(model, other) as complete:
        assert (complete / "config.json").read_text() == "model"
        assert (complete / IMAGE_CODEC / "which").read_text() == "model"
        assert (complete / SPEECH_CODEC / "which").read_text() == "other"
    assert not complete.exists()
    assert sorted(path.name for path in model.iterdir()) == sorted(["config.json", IMAGE_CODEC])
    with with_codecs(model, None) as same:
        assert same == model


def test_folders_without_codecs_are_refused(tmp_path) -> None:
    model, bare = folder(tmp_path / "model"), folder(tmp_path / "bare")
    with (
        pytest.raises(ValueError, match=f"neither {IMAGE_CODEC} nor {SPEECH_CODEC}"),
        with_codecs(model, bare),
    ):
        pass
    with pytest.raises(ValueError, match="not a folder"), with_codecs(tmp_path / "x", model):
        pass
