"""What a run leaves for serving: weights in the precision they are served in, tokenizer, codecs.

The `model/` folder of a training checkpoint is a checkpoint of the family already, in float32.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vllm_dynin import checkpoint
from vllm_dynin.processors.media import IMAGE_CODEC, SPEECH_CODEC
from vllm_dynin.training_ext.vocab import CheckpointReader


class Companions:
    """What lies beside the weights of a checkpoint, copied along: tokenizer files and codecs.

    Args:
        path: folder of the checkpoint.

    Raises:
        ValueError: it is no whole checkpoint of the family.
    """

    def __init__(self, path: str | Path) -> None:
        self._reader = CheckpointReader(path)

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy them; `save_checkpoint` calls it as it would a tokenizer's own."""
        self._reader.save_pretrained(folder)
        for name in (IMAGE_CODEC, SPEECH_CODEC):
            source = self._reader.path / name
            if source.is_dir():
                shutil.copytree(source, Path(folder) / name)


def export(
    source: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    replace: bool = False,
) -> None:
    """Write a checkpoint's weights in another precision, with what lies beside them.

    Tensors are read and written one at a time.

    Args:
        source: `model/` or `ema/` of a training checkpoint, or any checkpoint of the family.
        target: folder to create.
        dtype: of the weights.
        replace: put it in the place of an existing folder.

    Raises:
        ValueError: the source is no whole checkpoint, or the target exists.
    """

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in checkpoint.iter_tensors(source):
            yield name, tensor.to(dtype)

    config = checkpoint.load_config(source)
    checkpoint.save_checkpoint(target, config, tensors(), Companions(source), replace=replace)
