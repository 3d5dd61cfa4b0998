"""The checkpoint format of the family: tensor names, shapes, reading and writing.

One folder of safetensors files, a `config.json` in the original's spelling and, where there is
one, the tokenizer. The reference model, training, merging and the vLLM loader all use the names
defined here.

Trap: `ff_out` names both the output head (`model.transformer.ff_out.weight`) and the down
projection of every block; match whole names, never the suffix.

Source: state-dict keys of `LLaDAModelLM` (GSAI-ML/LLaDA, AIDASLab/Dynin-Omni@d6e3ca8).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vllm_dynin.config import CONFIG_CLASSES, LLaDAConfig

EMBEDDING = "model.transformer.wte.weight"
"""The token table, [rows, hidden]; its row count decides the size of the vocabulary."""

HEAD = "model.transformer.ff_out.weight"
"""The untied output head, [rows, hidden]."""

FINAL_NORM = "model.transformer.ln_f.weight"

IGNORED_PREFIX = "video_token_merger."
"""An optional module of the original that no path of it ever calls; its tensors are skipped."""

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

ARCHITECTURES: dict[str, str] = {
    "llada": "LLaDAModelLM",
    "mmada": "MMadaModelLM",
    "dynin_omni": "DyninOmniModelLM",
}
"""The name written to `architectures` for each `model_type`."""

_MAX_NAMED = 5  # tensors listed by name in one error; the rest are counted

# The original copies every one of these from config.json without defaults, so a file that lacks
# one cannot be loaded by it. They describe the only transformer the family has.
_ORIGINAL_FIELDS: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "embedding_dropout": 0.0,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "cpu",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rope": True,
    "rope_full_precision": True,
    "scale_logits": False,
    "use_cache": False,
    "weight_tying": False,
}


def block_prefix(layer: int) -> str:
    """Common prefix of the nine tensors of one transformer block, dot included."""
    return f"model.transformer.blocks.{layer}."


def expected_shapes(config: LLaDAConfig, num_rows: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint, in the order they are written.

    Args:
        config: sizes of the transformer.
        num_rows: rows of the token table and of the head; take it from `table_rows`, because
            `vocab_size` and `embedding_size` in published files can be stale.
    """
    hidden, mlp = config.d_model, config.mlp_hidden_size
    key_value = config.n_kv_heads * config.head_dim
    block: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "q_proj": (hidden, hidden),
        "k_proj": (key_value, hidden),
        "v_proj": (key_value, hidden),
        "attn_out": (hidden, hidden),
        "ff_norm": (hidden,),
        "ff_proj": (mlp, hidden),
        "up_proj": (mlp, hidden),
        "ff_out": (hidden, mlp),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (num_rows, hidden)}
    for layer in range(config.n_layers):
        for name, shape in block.items():
            shapes[f"{block_prefix(layer)}{name}.weight"] = shape
    return shapes | {FINAL_NORM: (hidden,), HEAD: (num_rows, hidden)}


def table_rows(shapes: Mapping[str, Sequence[int]]) -> int:
    """Rows of the token table, the only trustworthy size of the vocabulary.

    Raises:
        ValueError: there is no token table, or it is not a matrix.
    """
    shape = shapes.get(EMBEDDING)
    if shape is None or len(shape) != 2:
        found = "is missing" if shape is None else f"has shape {tuple(shape)}"
        raise ValueError(
            f"{EMBEDDING} {found}; a checkpoint of this family holds its token table [rows, "
            "hidden] under that name, so check that this is a LLaDA, MMaDA or Dynin-Omni checkpoint"
        )
    return int(shape[0])


def check_tensors(shapes: Mapping[str, Sequence[int]], config: LLaDAConfig) -> int:
    """Check that exactly the expected tensors are there, each in its shape.

    Args:
        shapes: name and shape of each tensor found; names under `IGNORED_PREFIX` do not count.
        config: what config.json says.

    Returns:
        Rows of the token table.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape (each is named, up to five
            of a kind), or the table has fewer rows than the vocabulary uses.
    """
    found = {name: tuple(shape) for name, shape in shapes.items() if not is_ignored(name)}
    num_rows = table_rows(found)
    expected = expected_shapes(config, num_rows)
    problems = [
        _listed("missing", [name for name in expected if name not in found]),
        _listed("unexpected", [name for name in found if name not in expected]),
        _listed(
            "of another shape",
            [
                f"{name} {found[name]}, expected {shape}"
                for name, shape in expected.items()
                if name in found and found[name] != shape
            ],
        ),
    ]
    if any(problems):
        raise ValueError(
            "the checkpoint's tensors do not fit its config.json: "
            + "; ".join(problem for problem in problems if problem)
            + ". Use the config.json that belongs to these weights, or convert the names"
        )
    if num_rows < config.vocabulary.num_used:
        raise ValueError(
            f"{EMBEDDING} has {num_rows} rows but the vocabulary uses {config.vocabulary.num_used}"
            f" ({config.vocabulary}); correct text_vocab_size, image_codebook_size or "
            "speech_codebook_size in config.json, or extend the table"
        )
    return num_rows


def is_ignored(name: str) -> bool:
    """Whether a tensor of this name is skipped by every loader."""
    return name.startswith(IGNORED_PREFIX)


def _listed(what: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _MAX_NAMED} more" if len(items) > _MAX_NAMED else ""
    return f"{len(items)} {what}: {', '.join(items[:_MAX_NAMED])}{more}"


# --- reading --------------------------------------------------------------------------------------


def load_config(path: str | Path) -> LLaDAConfig:
    """Read `config.json` without vLLM and without transformers' registry.

    Args:
        path: checkpoint folder.

    Raises:
        ValueError: the file is missing, is not JSON, or names another `model_type`.
    """
    values = _read_json(Path(path) / "config.json")
    classes = {cls.model_type: cls for cls in CONFIG_CLASSES}
    model_type = values.get("model_type")
    if model_type not in classes:
        raise ValueError(
            f"{path}/config.json has model_type={model_type!r}; "
            f"known are {', '.join(sorted(classes))}"
        )
    return classes[model_type].from_dict(values)


def tensor_files(path: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint folder: the single file, or the shards of the index.

    Raises:
        ValueError: there are none, or the index is broken or names a file that is not there.
    """
    folder = Path(path)
    if (folder / INDEX_FILE).is_file():
        weight_map = _read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{folder / INDEX_FILE} has no weight_map; download the index again")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            # A name is a file beside the index, nothing else: an index is untrusted input.
            if Path(name).name != name or not (folder / name).is_file():
                raise ValueError(
                    f"{folder / INDEX_FILE} names the shard {name!r}, which is not a file in "
                    f"{folder}; the download is incomplete, fetch the missing shard"
                )
        return [folder / name for name in names]
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    raise ValueError(
        f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}; only safetensors are read (a "
        "pickled .bin or .pt can run code), so convert the weights first"
    )


def tensor_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's tensors, read from the file headers only.

    Raises:
        ValueError: as `iter_tensors`.
    """
    return {name: tuple(part.get_shape()) for name, part in _iter_slices(path)}


def iter_tensors(path: str | Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor on the CPU in its stored dtype), one at a time, ignored names left out.

    Raises:
        ValueError: a file is missing or damaged, or a name stands in two shards.
    """
    for name, part in _iter_slices(path):
        yield name, part[...]  # a scale has no dimension to slice


def _iter_slices(path: str | Path) -> Iterator[tuple[str, Any]]:
    seen: dict[str, Path] = {}
    for file in tensor_files(path):
        try:
            handle = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file} cannot be read as safetensors ({error}); it is damaged or incomplete, "
                "fetch it again"
            ) from error
        with handle:
            for name in handle.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
                if is_ignored(name):
                    continue
                if name in seen:
                    raise ValueError(
                        f"tensor {name} is in both {seen[name].name} and {file.name} of {path}; "
                        "remove the file that does not belong to the checkpoint"
                    )
                seen[name] = file
                yield name, handle.get_slice(name)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file} is missing; give the folder of a checkpoint") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds a JSON {type(values).__name__}; an object is expected")
    return values


# --- writing --------------------------------------------------------------------------------------


def save_checkpoint(
    path: str | Path,
    config: LLaDAConfig,
    tensors: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]],
    tokenizer: Any = None,
    *,
    max_shard_bytes: int = 5 * 10**9,
    replace: bool = False,
) -> None:
    """Write a checkpoint that the original, this package and vLLM load, whole or not at all.

    Everything is written to a folder beside `path`, checked, and renamed into place.

    Args:
        path: folder to create.
        config: its sizes; `vocab_size` is written as the row count of the table.
        tensors: a mapping, or an iterable of (name, tensor), which is consumed once and held one
            shard at a time, so that a checkpoint larger than memory can be streamed through.
        tokenizer: anything with `save_pretrained(folder)`.
        max_shard_bytes: start a new file beyond this many bytes; one file is named
            `model.safetensors`, several get an index.
        replace: put it in the place of an existing folder.

    Raises:
        ValueError: `path` exists and `replace` is false, or the tensors do not fit `config`.
    """

    def finish(work: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        num_rows = check_tensors(shapes, config)
        text = json.dumps(production_config(config, num_rows), indent=2, sort_keys=True)
        (work / "config.json").write_text(text + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(work)

    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    write_folder(path, pairs, finish, max_shard_bytes=max_shard_bytes, replace=replace)


def write_folder(
    path: str | Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    finish: Callable[[Path, dict[str, tuple[int, ...]]], None],
    *,
    max_shard_bytes: int = 5 * 10**9,
    replace: bool = False,
) -> None:
    """Write a folder of tensors and what goes with them, whole or not at all.

    Args:
        path: folder to create.
        tensors: (name, tensor), consumed once, one shard held at a time.
        finish: given the folder while it has another name, and the shapes that were written; adds
            the other files, or raises.
        max_shard_bytes: as `save_checkpoint`.
        replace: put it in the place of an existing folder.

    Raises:
        ValueError: `path` exists and `replace` is false.
    """
    target = Path(path)
    if target.exists() and not replace:
        raise ValueError(f"{target} exists; choose another folder, remove it, or pass replace=True")
    work = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        finish(work, _write_tensors(work, tensors, max_shard_bytes))
        _move_into_place(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def production_config(config: LLaDAConfig, num_rows: int) -> dict[str, Any]:
    """The content of `config.json`: the original's keys, all of which it demands.

    Args:
        config: sizes of the transformer and of the vocabulary.
        num_rows: rows of the token table, written as `vocab_size` and `embedding_size`.
    """
    vocabulary = config.vocabulary
    return {
        **_ORIGINAL_FIELDS,
        **config.to_dict(),
        "architectures": [ARCHITECTURES[config.model_type]],
        "vocab_size": num_rows,
        "embedding_size": num_rows,
        "eos_token_id": vocabulary.eos,
        "pad_token_id": vocabulary.eos,
        "mask_token_id": vocabulary.mask,
    }


def _write_tensors(
    folder: Path, pairs: Iterable[tuple[str, torch.Tensor]], max_shard_bytes: int
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    shard: dict[str, torch.Tensor] = {}
    shards: list[list[str]] = []
    total = held = 0

    def flush() -> None:
        nonlocal held
        save_file(shard, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()
        held = 0

    for name, tensor in pairs:
        size = tensor.numel() * tensor.element_size()
        if shard and held + size > max_shard_bytes:
            flush()
        # A copy where it is a view, because safetensors refuses tensors that share memory.
        shard[name] = tensor.detach().to("cpu", copy=tensor._base is not None).contiguous()
        shapes[name] = tuple(tensor.shape)
        total, held = total + size, held + size
    flush()

    if len(shards) == 1:
        os.replace(folder / "0.part", folder / SINGLE_FILE)
        return shapes
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        os.replace(folder / f"{number}.part", folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return shapes


def _move_into_place(work: Path, target: Path) -> None:
    if not target.exists():
        os.replace(work, target)
        return
    # A folder cannot replace a full one in one call: the old one steps aside first, and comes back
    # if the new one cannot take its place.
    aside = target.with_name(f".{target.name}.{os.getpid()}.old.tmp")
    os.replace(target, aside)
    try:
        os.replace(work, target)
    except OSError:
        os.replace(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
