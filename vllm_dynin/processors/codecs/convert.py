"""Convert an original `.bin`, `.pt`, `.pth` or `.ckpt` file to safetensors, once and offline.

    python -m vllm_dynin.processors.codecs.convert pytorch_model.bin DIRECTORY

The published speech tokenizer is two files and a folder of speaking styles, which become one:

    COMMAND="python -m vllm_dynin.processors.codecs.convert"
    $COMMAND s2u.ckpt DIRECTORY --add-prefix encoder.
    $COMMAND u2s.pth DIRECTORY --add-prefix decoder. --styles condition_style_centroid

A file is read with `weights_only=True`: tensors and plain containers, no code. A `config.json`
beside the source is copied along, if the source is a whole model. Serving itself never opens a
pickle.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vllm_dynin.processors.codecs.emova_speech import EMOVA_MODEL_TYPE
from vllm_dynin.processors.codecs.loading import CONFIG_NAME, WEIGHTS_NAME, read_config
from vllm_dynin.processors.codecs.styles import STYLES

STYLE_TABLE = "style_embedding.weight"
"""What the published checkpoint calls the vectors of the speaking styles."""

_STATE_KEYS = ("state_dict", "model", "module", "generator")


def convert(
    source: Path,
    directory: Path,
    *,
    key: str | None = None,
    prefix: str = "",
    styles: Path | None = None,
) -> str:
    """Write `directory/model.safetensors` with the tensors of `source`, names and dtypes kept.

    Args:
        source: file written by `torch.save`.
        directory: created where needed. A `model.safetensors` in it is not overwritten; with a
            prefix, the tensors of both are joined.
        key: entry that holds the state dict; by default the file itself, or the first of
            `state_dict`, `model`, `module`, `generator` that holds one.
        prefix: put before every name: the source is one part of a model.
        styles: folder with the vectors of the speaking styles, one `.npy` file each, named by the
            style.

    Returns:
        A report of what was read, changed and written.

    Raises:
        ValueError: not readable without running code, no state dict inside, the target exists or
            has a tensor of that name, or a style is missing.
    """
    target = directory / WEIGHTS_NAME
    if target.exists() and not prefix:
        raise ValueError(f"{target} exists already; remove it or choose another directory")
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # the old-format unpickler raises whatever garbage leads it to
        raise ValueError(
            f"{source} cannot be read as plain tensors ({error}); files that need code to load "
            "must be re-saved as a bare state dict where they were made"
        ) from error
    path, state = _find_state(content, key, source)
    tensors, notes = _independent(state, prefix)
    if styles is not None:
        tensors[STYLE_TABLE] = style_table_of(styles)
        notes.append(f"read {len(STYLES)} speaking styles of {styles}")
    if target.exists():
        before = load_file(target)
        if common := sorted(before.keys() & tensors.keys()):
            raise ValueError(
                f"{target} has {common[0]} already, and {len(common) - 1} more of {source}; remove "
                "it to begin anew, or give another --add-prefix"
            )
        tensors = before | tensors
        notes.append(f"joined with the {len(before)} tensors of {target}")
    directory.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".partial{os.getpid()}")
    save_file(tensors, partial, metadata={"format": "pt", "converted_from": source.name})
    partial.rename(target)  # whole or not at all
    notes += _configure(directory, tensors) if prefix else _copy_config(source, directory)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    dtypes = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}))
    return "\n".join(
        [
            f"read {source} ({source.stat().st_size:,} bytes), state dict at {path}",
            f"wrote {target} ({target.stat().st_size:,} bytes): {len(tensors)} tensors, "
            f"{numbers:,} numbers, {dtypes}",
            *notes,
        ]
    )


def style_table_of(folder: Path) -> Tensor:
    """float32 [126, D]: the vectors of the speaking styles, in the order of `STYLES`.

    Raises:
        ValueError: a style has no file, or two; or the files are no vectors of one size.
    """
    rows = []
    files = sorted(folder.rglob("*.npy"))
    for style in STYLES:
        found = [file for file in files if style.name in file.name]
        if len(found) != 1:
            raise ValueError(f"{folder} has {len(found)} files *{style.name}*.npy; one is needed")
        try:
            rows.append(np.load(found[0], allow_pickle=False).astype(np.float32).reshape(-1))
        except (OSError, ValueError) as error:
            raise ValueError(f"{found[0]} cannot be read as an array: {error}") from error
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"{folder} has vectors of different sizes; all must have the same")
    return torch.from_numpy(np.stack(rows))


def _copy_config(source: Path, directory: Path) -> list[str]:
    config = source.parent / CONFIG_NAME
    if not config.exists() or (directory / CONFIG_NAME).exists():
        return []
    shutil.copyfile(config, directory / CONFIG_NAME)
    return [f"copied {CONFIG_NAME}"]


def _configure(directory: Path, tensors: Mapping[str, Tensor]) -> list[str]:
    """Say in the folder what it is; what lies beside a part describes only that part."""
    parts = {"encoder.": "the encoder", "decoder.": "the decoder", STYLE_TABLE: "--styles"}
    missing = [
        what for part, what in parts.items() if not any(name.startswith(part) for name in tensors)
    ]
    if missing:
        return [f"not yet a speech codec: {' and '.join(missing)} must be added"]
    config = read_config(directory)
    if "model_type" not in config:
        config["model_type"] = EMOVA_MODEL_TYPE
        (directory / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
    return [f"{directory} is a speech codec; put it into a checkpoint's folder as speech_codec"]


def _find_state(content: Any, key: str | None, source: Path) -> tuple[str, Mapping[str, Any]]:
    if key is not None:
        candidates = [key]
        if not isinstance(content, Mapping) or key not in content:
            raise ValueError(f"{source} has no entry {key!r}")
    else:
        candidates = [k for k in _STATE_KEYS if isinstance(content, Mapping) and k in content]
        if isinstance(content, Mapping) and any(isinstance(v, Tensor) for v in content.values()):
            return "the top level", content
    for name in candidates:
        state = content[name]
        if isinstance(state, Mapping) and any(isinstance(v, Tensor) for v in state.values()):
            return f"{name!r}", state
    names = list(content)[:10] if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(f"{source} holds no state dict (found {names}); name its entry with --key")


def _independent(state: Mapping[str, Any], prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """Contiguous tensors with a storage of their own, as safetensors wants them, and notes."""
    tensors: dict[str, Tensor] = {}
    notes: list[str] = []
    owner: dict[int, str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            notes.append(f"left out {name!r}: a {type(value).__name__}, no tensor")
            continue
        storage = value.untyped_storage().data_ptr()
        if value.numel() and storage in owner:
            notes.append(f"copied {name!r}: it shared memory with {owner[storage]!r}")
        owner.setdefault(storage, name)
        tensors[prefix + name] = value.detach().clone(memory_format=torch.contiguous_format)
    if prefix:
        notes.append(f"put {prefix!r} before every name")
    return tensors, notes


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="convert", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help=".bin, .pt, .pth or .ckpt file")
    parser.add_argument("directory", type=Path, help="where model.safetensors is written")
    parser.add_argument("--key", help="entry of the file that holds the state dict")
    parser.add_argument(
        "--add-prefix",
        default="",
        help="put before every tensor name: the file is one part of a model, and joined with what "
        "DIRECTORY has",
    )
    parser.add_argument(
        "--styles", type=Path, help="folder with the speaking styles of the decoder, *.npy"
    )
    options = parser.parse_args(arguments)
    try:
        report = convert(
            options.source,
            options.directory,
            key=options.key,
            prefix=options.add_prefix,
            styles=options.styles,
        )
        print(report)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
