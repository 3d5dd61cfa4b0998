"""Low-rank adapters on the matrices of the blocks: y = W x + (α / r) · B A x, with W frozen.

The matrices of this family have names of their own, and `ff_out` is both the last one of a block
and the head. So adapters are put on by block and by exact name, and a name that matches nothing is
an error: lists made for other families adapted half of what they named, in silence.

Files are PEFT's (`adapter_config.json`, `adapter_model.safetensors`), written and read without it.

Source: arXiv 2106.09685; the file format of huggingface/peft 0.17.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vllm_dynin import checkpoint
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.sampling.noise import mix_key
from vllm_dynin.training_ext.vocab import CheckpointReader

TARGETS = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")
"""Matrices of a block that can have an adapter."""

ADAPTER_CONFIG, ADAPTER_MODEL = "adapter_config.json", "adapter_model.safetensors"

_ELSEWHERE = {"o_proj": "attn_out", "gate_proj": "ff_proj", "down_proj": "ff_out"}
_PREFIX = "base_model.model."
_KEY = re.compile(r"(model\.transformer\.blocks\.\d+\.(\w+))\.lora_([AB])\.weight")


def check_targets(targets: Sequence[str]) -> None:
    """Whether each name is one of a block's matrices.

    Raises:
        ValueError: one is not, or there is none.
    """
    if not targets:
        raise ValueError(f"no matrix is named; name some of {', '.join(TARGETS)}")
    for name in targets:
        if name not in TARGETS:
            hint = f"; {name} is {_ELSEWHERE[name]} here" if name in _ELSEWHERE else ""
            raise ValueError(
                f"{name!r} is no matrix of a block; they are {', '.join(TARGETS)}{hint}"
            )


class LoraLinear(nn.Linear):
    """A frozen linear layer with an adapter; its own weight keeps its name.

    Args:
        base: the layer it takes the place of.
        rank: of the adapter.
        alpha: the adapter is scaled by alpha / rank.
        dropout: of what goes into the adapter, in training.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight
        self.register_parameter("bias", None)
        kept: dict[str, Any] = {"device": base.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Parameter(torch.zeros(rank, self.in_features, **kept))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, **kept))
        self.scale, self.dropout = alpha / rank, dropout

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear`, [..., in] → [..., out]."""
        low = F.dropout(x, self.dropout, self.training and self.dropout > 0)
        low = F.linear(low, self.lora_A.to(x.dtype))
        return F.linear(x, self.weight) + self.scale * F.linear(low, self.lora_B.to(low.dtype))


def add_adapters(
    model: LLaDA,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Sequence[str] = TARGETS,
    base_dtype: torch.dtype | None = None,
) -> None:
    """Freeze a model and give the matrices of its blocks adapters that change nothing yet.

    Args:
        model: changed in place; it may be on the meta device.
        rank: of each adapter.
        alpha: the adapters are scaled by alpha / rank.
        dropout: of what goes into them.
        targets: which matrices.
        base_dtype: of the frozen weights; None leaves it.

    Raises:
        ValueError: a name is none of a block's matrices.
    """
    check_targets(targets)
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            frozen = weight.detach().to(base_dtype or weight.dtype)
            setattr(module, name, nn.Parameter(frozen, requires_grad=False))
    for block in model.model.transformer.blocks:
        for name in targets:
            setattr(block, name, LoraLinear(getattr(block, name), rank, alpha, dropout))


@torch.no_grad()
def initialise_adapters(model: nn.Module, seed: int) -> None:
    """A uniform within 1 / √in, as `nn.Linear`; B zero. Each from its name, so ranks agree."""
    for name, module in adapted(model):
        generator = torch.Generator().manual_seed(mix_key(seed, int.from_bytes(name.encode())))
        bound = 1 / math.sqrt(module.in_features)
        drawn = torch.empty(module.lora_A.shape).uniform_(-bound, bound, generator=generator)
        module.lora_A.copy_(drawn)
        module.lora_B.zero_()


def adapted(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The layers with adapters, by name."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def is_adapter(name: str) -> bool:
    """Whether a parameter is part of an adapter, and not of the model."""
    return name.endswith((".lora_A", ".lora_B"))


# --- files ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The adapter of one matrix.

    Args:
        a: float32 [rank, in].
        b: float32 [out, rank].
        scale: of their product.
    """

    a: Tensor
    b: Tensor
    scale: float

    def added_to(self, weight: Tensor) -> Tensor:
        """Weight + scale · B A, computed in float32 and rounded once to the weight's dtype."""
        return (weight.float() + self.scale * (self.b @ self.a)).to(weight.dtype)


def save_adapter(folder: Path, model: nn.Module, *, base: str = "") -> None:
    """Write a model's adapters as PEFT does.

    Args:
        folder: to create.
        model: with adapters of one rank.
        base: the checkpoint they belong to, for the reader's eyes.
    """
    tensors, names = {}, set()
    first: LoraLinear | None = None
    for name, module in adapted(model):
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = module.lora_A.detach().cpu().contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = module.lora_B.detach().cpu().contiguous()
        names.add(name.rpartition(".")[2])
        first = first or module
    if first is None:
        raise ValueError("the model has no adapters")
    rank = len(first.lora_A)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": first.scale * rank,
        "lora_dropout": first.dropout,
        # As an expression and not as names: PEFT matches names by their end, and the head ends so.
        "target_modules": rf".*\.blocks\.\d+\.({'|'.join(sorted(names))})",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "task_type": None,
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / ADAPTER_MODEL, metadata={"format": "pt"})
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


_REFUSED = {
    "use_dora": "DoRA has no exact merge into a matrix here",
    "modules_to_save": "whole modules beside adapters are not read",
    "rank_pattern": "ranks that differ by name are not read",
    "alpha_pattern": "scales that differ by name are not read",
    "fan_in_fan_out": "the matrices of this family are not transposed",
}


def read_adapter(folder: str | Path) -> dict[str, Adapter]:
    """Adapters in PEFT's format, by the name of the weight they belong to.

    Raises:
        ValueError: the folder holds none, or one of another kind; or a name matches no matrix of
            this family, the head's included.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / ADAPTER_MODEL, framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} holds no adapter ({error}); it has {ADAPTER_CONFIG} and {ADAPTER_MODEL}"
        ) from error
    _check_kind(folder, config)
    pairs: dict[str, dict[str, Tensor]] = {}
    strange = []
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key.removeprefix(_PREFIX))
        if found is None or found[2] not in TARGETS:
            strange.append(key)
        else:
            pairs.setdefault(f"{found[1]}.weight", {})[found[3]] = tensor
    strange += [name for name, pair in pairs.items() if len(pair) != 2]
    if strange or not pairs:
        raise ValueError(
            f"{folder} has {len(strange)} tensors that belong to no matrix of this family "
            f"({', '.join(strange[:3]) or 'and no others'}); adapters are on "
            f"model.transformer.blocks.N.X with X one of {', '.join(TARGETS)}"
        )
    return {
        name: Adapter(a=pair["A"], b=pair["B"], scale=_scale(config, len(pair["A"])))
        for name, pair in pairs.items()
    }


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder} is {config.get('peft_type')!r}, and only LORA is read")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{folder} trains biases, which this family does not have")
    for name, why in _REFUSED.items():
        if config.get(name):
            raise ValueError(f"{folder} sets {name}: {why}")


def _scale(config: Mapping[str, Any], rank: int) -> float:
    root = math.sqrt(rank) if config.get("use_rslora") else rank
    return float(config["lora_alpha"]) / root


def load_adapter(model: nn.Module, folder: str | Path) -> None:
    """Fill a model's adapters from files.

    Raises:
        ValueError: they are not the adapters of this model, by name, rank and scale.
    """
    saved = read_adapter(folder)
    layers = {f"{name}.weight": module for name, module in adapted(model)}
    if saved.keys() != layers.keys():
        wrong = sorted(saved.keys() ^ layers.keys())
        raise ValueError(f"{folder} does not fit this run: {', '.join(wrong[:3])} differ")
    with torch.no_grad():
        for name, module in layers.items():
            one = saved[name]
            fits = one.a.shape == module.lora_A.shape and one.b.shape == module.lora_B.shape
            if not fits or not math.isclose(one.scale, module.scale):
                raise ValueError(
                    f"{folder}: {name} has rank {len(one.a)} and scale {one.scale:g}, this run "
                    f"{len(module.lora_A)} and {module.scale:g}"
                )
            module.lora_A.copy_(one.a)
            module.lora_B.copy_(one.b)


def merge_adapter(
    base: str | Path,
    adapter: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    companions: Any = None,
    replace: bool = False,
) -> int:
    """Write a checkpoint with the adapter added to its matrices, one tensor at a time.

    Args:
        base: checkpoint folder.
        adapter: folder in PEFT's format.
        target: folder to create.
        dtype: of the result; None is that of each tensor of the base.
        companions: what goes beside the weights; None copies the base's tokenizer.
        replace: put it in the place of an existing folder.

    Returns:
        How many matrices were changed.

    Raises:
        ValueError: the adapter does not fit the checkpoint.
    """
    found = read_adapter(adapter)
    shapes = checkpoint.tensor_shapes(base)
    for name, one in found.items():
        expected = (len(one.b), one.a.shape[1])
        if tuple(shapes.get(name, ())) != expected:
            raise ValueError(
                f"{adapter} changes {name} of shape {expected}, in {base} it is "
                f"{shapes.get(name, 'missing')}; merge it into the checkpoint it was trained on"
            )

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in checkpoint.iter_tensors(base):
            tensor = tensor if dtype is None else tensor.to(dtype)
            yield name, found[name].added_to(tensor) if name in found else tensor

    config = checkpoint.load_config(base)
    companions = CheckpointReader(base) if companions is None else companions
    checkpoint.save_checkpoint(target, config, tensors(), companions, replace=replace)
    return len(found)
