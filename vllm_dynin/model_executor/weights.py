"""Published tensor names into the vLLM layers; a tensor without a place is an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from vllm_dynin import checkpoint
from vllm_dynin.config import LLaDAConfig

# Tensor of a block → the layer that holds it, and which shard of a merged layer it is.
_BLOCK_PLACES: dict[str, tuple[str, str | int | None]] = {
    "attn_norm": ("attn_norm", None),
    "q_proj": ("attention.qkv_proj", "q"),
    "k_proj": ("attention.qkv_proj", "k"),
    "v_proj": ("attention.qkv_proj", "v"),
    "attn_out": ("attention.attn_out", None),
    "ff_norm": ("ff_norm", None),
    "ff_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
    "ff_out": ("ff_out", None),
}
# NOTE: `transformer.ff_out` is the head, `blocks.N.ff_out` a down projection.
_TOP_PLACES = {"wte": "transformer.wte", "ln_f": "transformer.ln_f", "ff_out": "lm_head"}
_NAME = re.compile(r"model\.transformer\.(?:blocks\.(\d+)\.)?(\w+)\.(\w+)")
# Scales of a quantised KV cache: written beside the projections, or for the block.
_CACHE_SCALE = re.compile(
    r"model\.transformer\.blocks\.(\d+)\.(?:[qkv]_proj\.)?([qkv]_scale|[qkv]_zero_point)"
)
_ATTENTION = re.compile(r"transformer\.blocks\.\d+\.attention\.attn\.")
"""Parameters of vLLM's attention itself: a quantised checkpoint may bring them; they are 1 where
it does not."""


def load_checkpoint(
    params: Mapping[str, Tensor],
    config: LLaDAConfig,
    weights: Iterable[tuple[str, Tensor]],
    *,
    is_quantized: bool,
) -> set[str]:
    """Copy every tensor into its layer.

    Args:
        params: the model's parameters by name, written in place.
        config: what the model was built from.
        weights: (published name, tensor) pairs in any order.
        is_quantized: whether the layers are those of a quantisation method.

    Returns:
        Names of the parameters that were written, as vLLM checks them.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape; they are named. Of a
            quantised checkpoint the shapes are the quantisation method's to check.
    """
    expected = checkpoint.expected_shapes(config, config.vocab_size)
    shapes: dict[str, tuple[int, ...]] = {}
    loaded: set[str] = set()
    for name, tensor in weights:
        if checkpoint.is_ignored(name):
            continue
        shapes[name] = tuple(tensor.shape)
        parameter, shard = _place(name)
        if is_quantized and parameter not in params and _is_idle(name, tensor):
            del shapes[name]
            continue
        fits = is_quantized or expected.get(name) == shapes[name]
        if parameter not in params or not fits:
            continue  # reported below, with all others
        target = params[parameter]
        loader: Callable[..., None] = getattr(target, "weight_loader", default_weight_loader)
        loader(target, tensor) if shard is None else loader(target, tensor, shard)
        loaded.add(parameter)
    if is_quantized:
        _check_quantized(params.keys() - loaded, shapes, params)
    else:
        _check_rows(checkpoint.check_tensors(shapes, config), config.vocab_size)
    return loaded


def _place(name: str) -> tuple[str, str | int | None]:
    """Parameter of the model that a published tensor belongs to; an unknown name gets none."""
    if scale := _CACHE_SCALE.fullmatch(name):
        return f"transformer.blocks.{scale[1]}.attention.attn.{scale[2]}", None
    match = _NAME.fullmatch(name)
    if match is None:
        return "", None
    layer, module, kind = match.groups()
    if layer is None:
        return f"{_TOP_PLACES.get(module, '')}.{kind}", None
    place, shard = _BLOCK_PLACES.get(module, ("", None))
    return f"transformer.blocks.{layer}.{place}.{kind}", shard


def _is_idle(name: str, tensor: Tensor) -> bool:
    """Whether a tensor that tools write for every layer says nothing to this model.

    AutoGPTQ writes the order of the groups where there is none, and biases of zero.
    """
    return name.endswith(".g_idx") or (name.endswith(".bias") and not tensor.any())


def _check_rows(found: int, built: int) -> None:
    if found != built:
        raise ValueError(
            f"{checkpoint.EMBEDDING} has {found} rows but the model was built with {built}; "
            f"start with --hf-overrides '{{\"vocab_size\": {found}}}'"
        )


def _check_quantized(
    missing: set[str], shapes: dict[str, tuple[int, ...]], params: Mapping[str, Tensor]
) -> None:
    missing = {name for name in missing if not _ATTENTION.match(name)}
    unexpected = [name for name in shapes if _place(name)[0] not in params]
    if missing or unexpected:
        raise ValueError(
            f"the quantised checkpoint does not fit: missing {sorted(missing)[:5]}, unexpected "
            f"{sorted(unexpected)[:5]}; use a checkpoint quantised with this model's layer names"
        )
