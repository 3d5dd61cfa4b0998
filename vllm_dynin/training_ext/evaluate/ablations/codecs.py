"""Checkpoints of phases and of merges are models alone; here they get the codecs of another."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_dynin.processors.media import IMAGE_CODEC, SPEECH_CODEC


@contextmanager
def with_codecs(checkpoint: Path, codecs: Path | None) -> Iterator[Path]:
    """A folder with the files of a checkpoint and the codecs of another one, for a while.

    Args:
        checkpoint: folder of the checkpoint; codecs of its own stay.
        codecs: folder of a checkpoint with codecs; None leaves the checkpoint as it is.

    Yields:
        The folder; links only, nothing is copied.

    Raises:
        ValueError: one of the two is no folder, or the second has no codec.
    """
    if codecs is None:
        yield checkpoint
        return
    for folder in (checkpoint, codecs):
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; give that of a checkpoint")
    found = [codecs / name for name in (IMAGE_CODEC, SPEECH_CODEC) if (codecs / name).is_dir()]
    if not found:
        raise ValueError(f"{codecs} has neither {IMAGE_CODEC} nor {SPEECH_CODEC} in it")
    with tempfile.TemporaryDirectory(prefix="vllm-dynin-") as temporary:
        target = Path(temporary) / checkpoint.name
        target.mkdir()
        for path in (*checkpoint.iterdir(), *found):
            if not (target / path.name).exists():
                (target / path.name).symlink_to(path.resolve())
        yield target
