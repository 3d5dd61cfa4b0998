"""Reading codec checkpoints: safetensors only, every key accounted for, parameters in float32.

A codec directory holds `config.json` and one safetensors file, or several with an index. Original
`.bin` and `.pt` files go through `python -m vllm_dynin.processors.codecs.convert` once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
# In the order tried; the second is the name the original image tokenizer's loader looks for.
_WEIGHTS_NAMES = (
    WEIGHTS_NAME,
    "pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors",
)
_MAX_LISTED = 12
_CONVERT_COMMAND = "python -m vllm_dynin.processors.codecs.convert SOURCE DIRECTORY"


def resolve_checkpoint(path_or_id: str | Path, revision: str | None = None) -> Path:
    """Find a checkpoint's directory: a local one, or a snapshot of a Hugging Face repository.

    Only `*.json` and `*.safetensors` are downloaded, so no code and no pickle can arrive.

    Args:
        path_or_id: directory, or repository id such as `snu-aidas/magvitv2`.
        revision: branch, tag or commit of the repository; ignored for a directory.

    Raises:
        ValueError: neither a directory nor a repository that can be reached.
    """
    directory = Path(path_or_id)
    if directory.is_dir():
        return directory
    name = str(path_or_id)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise ValueError(
            f"{name!r} is neither an existing directory nor a repository id like 'owner/name'"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors"])
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{name!r} is no local directory and could not be fetched from the Hub ({error}); "
            "when offline, pass the directory of a downloaded copy"
        ) from error


def read_config(directory: Path) -> dict[str, Any]:
    """The directory's `config.json`, or an empty dict where there is none.

    Raises:
        ValueError: the file is not a JSON object.
    """
    path = directory / CONFIG_NAME
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}; it must be a JSON object")
    return config


def read_safetensors(directory: Path) -> dict[str, Tensor]:
    """Read every tensor of a checkpoint directory, in the dtypes of the file, on the CPU.

    Tried in order: an index (`*.safetensors.index.json`), `model.safetensors`,
    `pytorch_model.safetensors`, `diffusion_pytorch_model.safetensors`, a single `*.safetensors`.

    Raises:
        ValueError: there is none, the choice is ambiguous, or a file is damaged or incomplete.
    """
    indices = sorted(directory.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise ValueError(f"{directory} has {len(indices)} safetensors indices; keep one")
    if indices:
        return _read_sharded(indices[0])
    for name in _WEIGHTS_NAMES:
        if (directory / name).exists():
            return _read_file(directory / name)
    files = sorted(directory.glob("*.safetensors"))
    if len(files) == 1:
        return _read_file(files[0])
    if files:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{directory} has {names}; rename the wanted one to {WEIGHTS_NAME}")
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in {".bin", ".pt", ".pth"})
    hint = f"; convert {pickles[0]} once: {_CONVERT_COMMAND}" if pickles else ""
    raise ValueError(f"{directory} has no *.safetensors file{hint}")


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error


def _read_sharded(index: Path) -> dict[str, Tensor]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} has no usable 'weight_map': {error!r}") from error
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise ValueError(f"{index} names the file {shard!r}; it must lie beside the index")
        tensors.update(_read_file(index.parent / shard))
    if tensors.keys() != weight_map.keys():
        difference = sorted(tensors.keys() ^ weight_map.keys())
        raise ValueError(f"{index} and its files disagree on {_listed(difference)}")
    return tensors


def save_checkpoint(
    directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write `config.json` and `model.safetensors`, as `read_config` and `read_safetensors` read.

    Args:
        directory: created where needed; the two files are overwritten.
        config: JSON-serialisable.
        tensors: on any device; written in their dtypes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_NAME).write_text(json.dumps(dict(config), indent=2) + "\n", "utf-8")
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(ready, directory / WEIGHTS_NAME, metadata={"format": "pt"})


@contextmanager
def float32_default() -> Iterator[None]:
    """Make parameters in float32, whatever default dtype the caller (vLLM sets bfloat16) has set.

    The default dtype is a global of the process: keep only the construction of modules inside.
    """
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


_WEIGHT_NORM = (  # the two spellings of (magnitude g, direction v)
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)


def fold_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace weight-normalised pairs by the weights they stand for; plain weights pass through.

    W = g · v / ‖v‖. The norm runs over exactly the dims in which g has size 1, so the shape of each
    g says along which dim its layer was normalised (0 for most, 2 for the S2U position convs).

    Args:
        tensors: keys may use `X.weight_g`/`X.weight_v` or
            `X.parametrizations.weight.original0`/`1`, mixed freely; not modified.

    Returns:
        The same tensors with `X.weight` (float32) in place of each pair.

    Raises:
        ValueError: half of a pair is missing, both a pair and a plain weight are given, or the
            shape of g fits no dim of v.
    """
    folded = dict(tensors)
    for key in tensors:
        for g_suffix, v_suffix in _WEIGHT_NORM:
            if key.endswith(v_suffix) and key.removesuffix(v_suffix) + g_suffix not in tensors:
                raise ValueError(f"{key} has no {g_suffix} beside it: the weight norm is halved")
            if not key.endswith(g_suffix):
                continue
            name = key.removesuffix(g_suffix)
            if name + v_suffix not in tensors:
                raise ValueError(f"{key} has no {v_suffix} beside it: the weight norm is halved")
            if f"{name}.weight" in folded:
                raise ValueError(f"{name} has both a plain and a weight-normalised weight")
            g, v = folded.pop(key).float(), folded.pop(name + v_suffix).float()
            sizes = list(zip(g.shape, v.shape, strict=False))
            if g.ndim != v.ndim or any(a not in (1, b) for a, b in sizes):
                raise ValueError(
                    f"{key} has shape {tuple(g.shape)}, which is no magnitude for a direction of "
                    f"shape {tuple(v.shape)}"
                )
            dims = [dim for dim, (size, _) in enumerate(sizes) if size == 1]
            norm = torch.linalg.vector_norm(v, dim=dims, keepdim=True) if dims else v.abs()
            folded[f"{name}.weight"] = g * v / norm
    return folded


def load_exact(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    dropped: Iterable[str] = (),
    optional: Iterable[str] = (),
) -> None:
    """Fill `module` from `tensors` in place, with every key on both sides accounted for.

    Weight norm is folded first (`fold_weight_norm`); values are cast to the module's dtypes.

    Args:
        module: real (not meta) parameters and buffers; overwritten.
        tensors: what the checkpoint holds; not modified.
        dropped: regular expressions matched from the start of a key (a plain prefix will do): keys
            of the file that are not needed. Dropped before anything else.
        optional: likewise, buffers of the module that can be computed: the file may lack them, and
            where it has them they must agree (this catches a wrong checkpoint).

    Raises:
        ValueError: missing, unexpected or mis-shaped keys, or an optional buffer that disagrees;
            all are named, up to a limit.
    """
    is_dropped, is_optional = _matcher(dropped), _matcher(optional)
    given = fold_weight_norm({key: t for key, t in tensors.items() if not is_dropped(key)})
    wanted = module.state_dict()  # shares storage with the module
    problems = {
        "missing": [k for k in wanted if k not in given and not is_optional(k)],
        "unexpected": [k for k in given if k not in wanted],
        "of another shape": [
            f"{k} {tuple(given[k].shape)} instead of {tuple(wanted[k].shape)}"
            for k in wanted
            if k in given and given[k].shape != wanted[k].shape
        ],
    }
    if not any(problems.values()):
        problems["different from their computed value"] = [
            k for k in wanted if k in given and is_optional(k) and not _agree(given[k], wanted[k])
        ]
    found = [f"{what}: {_listed(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise ValueError(
            f"the checkpoint does not fit {type(module).__name__}; {'; '.join(found)}. "
            "Check that it is the right checkpoint and that config.json describes it"
        )
    with torch.no_grad():
        for key, target in wanted.items():
            if not is_optional(key):
                target.copy_(given[key])


def _matcher(patterns: Iterable[str]) -> Any:
    compiled = [re.compile(pattern) for pattern in patterns]
    return lambda key: any(pattern.match(key) for pattern in compiled)


def _agree(given: Tensor, computed: Tensor) -> bool:
    return torch.allclose(given.double(), computed.double(), rtol=1e-5, atol=1e-6)


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - _MAX_LISTED} more" if len(keys) > _MAX_LISTED else ""
    return f"{len(keys)} ({', '.join(keys[:_MAX_LISTED])}{more})"
