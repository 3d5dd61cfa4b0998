"""A checkpoint with its large matrices in eight bits, in the format that vLLM reads.

Rounding to nearest, one scale for each output channel; activations are scaled for each row while
the model runs, so no calibration data is needed. The token table and the head keep their dtype.

Source of the format: compressed-tensors, `int-quantized` and `float-quantized`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_dynin import checkpoint


@dataclass(frozen=True)
class Scheme:
    """How a weight is stored.

    Args:
        format: name of the format.
        type: of the numbers, as the format names it.
        dtype: they are stored in.
        most: largest magnitude that a weight is scaled to.
    """

    format: str
    type: str
    dtype: torch.dtype
    most: float


SCHEMES = {
    "int8": Scheme("int-quantized", "int", torch.int8, 127.0),
    "fp8": Scheme("float-quantized", "float", torch.float8_e4m3fn, 448.0),
}
_MATRICES = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")


def quantize_matrix(weight_OI: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Round a matrix.

    Args:
        weight_OI: floating [out, in].
        scheme: how.

    Returns:
        The numbers [out, in] of the scheme's dtype, and float32 scales [out, 1]: their product is
        the matrix, to within half a step.
    """
    weight_OI = weight_OI.float()
    scale_O1 = weight_OI.abs().amax(-1, keepdim=True).clamp(min=1e-12) / scheme.most
    scaled_OI = (weight_OI / scale_O1).clamp(-scheme.most, scheme.most)
    if scheme.dtype == torch.int8:
        scaled_OI = scaled_OI.round()
    return scaled_OI.to(scheme.dtype), scale_O1


def quantization_config(scheme: Scheme) -> dict[str, Any]:
    """What `config.json` says of it under `quantization_config`."""
    numbers = {"num_bits": 8, "type": scheme.type, "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": scheme.format,
        "quantization_status": "compressed",
        "ignore": [checkpoint.HEAD.removesuffix(".weight")],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**numbers, "strategy": "channel", "dynamic": False},
                "input_activations": {**numbers, "strategy": "token", "dynamic": True},
            }
        },
    }


def quantize_checkpoint(source: str | Path, target: str | Path, scheme: Scheme) -> None:
    """Write a quantised copy of a checkpoint: one shard of it is held in memory at a time.

    Args:
        source: folder of a checkpoint; everything in it but weights and index is copied.
        target: folder to create.
        scheme: how.

    Raises:
        ValueError: the target exists, or the source is no checkpoint, or is quantised already.
    """
    source, target = Path(source), Path(target)
    checkpoint.check_tensors(checkpoint.tensor_shapes(source), checkpoint.load_config(source))

    def finish(work: Path, _: dict[str, tuple[int, ...]]) -> None:
        weights = {file.name for file in checkpoint.tensor_files(source)}
        for item in sorted(source.iterdir()):
            if item.is_dir():
                shutil.copytree(item, work / item.name)
            elif item.name not in weights | {checkpoint.INDEX_FILE}:
                shutil.copy(item, work / item.name)
        config = json.loads((work / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"] = quantization_config(scheme)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (work / "config.json").write_text(text, encoding="utf-8")

    checkpoint.write_folder(target, _quantized(source, scheme), finish)


def _quantized(source: Path, scheme: Scheme) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in checkpoint.iter_tensors(source):
        if ".blocks." in name and name.split(".")[-2] in _MATRICES:
            numbers, scale = quantize_matrix(tensor, scheme)
            yield name, numbers
            yield f"{name}_scale", scale
        else:
            yield name, tensor
