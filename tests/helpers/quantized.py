"""Checkpoints in the formats that other tools write, rounded to nearest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_dynin import checkpoint

GROUP = 32
_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
Pairs = Iterator[tuple[str, Tensor]]


def packed(values: Tensor, dim: int) -> Tensor:
    """Eight 4-bit numbers (0 … 15) of neighbouring rows or columns in each int32."""
    values = values.to(torch.int64).unflatten(dim, (-1, 8))
    shifts = torch.arange(0, 32, 4)
    shape = [1] * values.dim()
    shape[dim + 1] = 8
    return (values << shifts.reshape(shape)).sum(dim + 1).to(torch.int32)


def int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers 0 … 15 [in, out] with zero point 8, and scales [in / GROUP, out]."""
    groups = weight.float().T.unflatten(0, (-1, GROUP))
    scales = groups.abs().amax(1).clamp(min=1e-8) / 7
    numbers = (groups / scales[:, None]).round().clamp(-8, 7) + 8
    return numbers.flatten(0, 1), scales


def gptq(name: str, weight: Tensor) -> Pairs:
    """AutoGPTQ's tensors; its zero points are stored less one."""
    numbers, scales = int4(weight)
    yield f"{name}.qweight", packed(numbers, 0)
    yield f"{name}.qzeros", packed(torch.full_like(scales, 7), 1)
    yield f"{name}.scales", scales.half()
    yield f"{name}.g_idx", (torch.arange(weight.shape[1]) // GROUP).int()


def awq(name: str, weight: Tensor) -> Pairs:
    """AutoAWQ's tensors; columns are interleaved inside an int32."""

    def interleaved(values: Tensor) -> Tensor:
        return packed(values.unflatten(1, (-1, 8))[:, :, _AWQ_ORDER].flatten(1), 1)

    numbers, scales = int4(weight)
    yield f"{name}.qweight", interleaved(numbers)
    yield f"{name}.qzeros", interleaved(torch.full_like(scales, 8))
    yield f"{name}.scales", scales.half()


def fp8(name: str, weight: Tensor) -> Pairs:
    """Serialised fp8 as `quant_method: fp8` has it: one scale a matrix, and scales of the cache."""
    scale = weight.float().abs().max() / 448
    yield f"{name}.weight", (weight.float() / scale).to(torch.float8_e4m3fn)
    yield f"{name}.weight_scale", scale
    if name.endswith(("k_proj", "v_proj")):
        yield f"{name}.{name[-6]}_scale", torch.tensor(1.0)


HEAD = "model.transformer.ff_out"
FORMATS: dict[str, tuple[Callable[[str, Tensor], Pairs], dict[str, Any]]] = {
    "gptq": (
        gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True,
         "lm_head": False},
    ),
    "awq": (
        awq,
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True,
         "version": "gemm"},
    ),
    "fp8": (fp8, {"quant_method": "fp8", "activation_scheme": "dynamic"}),
}  # fmt: skip


def write_quantized(source: Path, target: Path, method: str, kept: tuple[str, ...] = ()) -> Path:
    """Quantise the matrices of a checkpoint's blocks, but for those whose names are in `kept`."""
    make, config = FORMATS[method]

    def pairs() -> Pairs:
        for name, tensor in checkpoint.iter_tensors(source):
            layer = name.removesuffix(".weight")
            if ".blocks." in name and tensor.dim() == 2 and layer not in kept:
                yield from make(layer, tensor)
            elif ".blocks." in name and tensor.dim() == 2:
                yield name, tensor.half()
            else:
                yield name, tensor

    def finish(work: Path, _: Any) -> None:
        for item in source.iterdir():
            if item.suffix != ".safetensors" and item.is_file():
                shutil.copy(item, work)
        values = json.loads((work / "config.json").read_text())
        values["quantization_config"] = {**config, "modules_to_not_convert": [*kept, HEAD]}
        (work / "config.json").write_text(json.dumps(values))

    checkpoint.write_folder(target, pairs(), finish)
    return target
