"""Media and codecs, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.training_data import codec_checkpoint, write_media


@pytest.fixture(scope="session")
def codecs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with codecs and no weights."""
    return codec_checkpoint(tmp_path_factory.mktemp("codecs") / "checkpoint")


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of digits, photographs, a clip and spoken digits."""
    return write_media(tmp_path_factory.mktemp("data") / "media")
