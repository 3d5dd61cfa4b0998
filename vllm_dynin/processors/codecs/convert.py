"""Convert an original `.bin`, `.pt`, `.pth` or `.ckpt` file to safetensors, once and offline.

    python -m vllm_dynin.processors.codecs.convert pytorch_model.bin DIRECTORY
    python -m vllm_dynin.processors.codecs.convert s2u.ckpt DIRECTORY --add-prefix encoder.
    python -m vllm_dynin.processors.codecs.convert u2s.pth DIRECTORY --add-prefix decoder.

The file is read with `weights_only=True`: tensors and plain containers, no code. A `config.json`
beside the source is copied along. Serving itself never opens a pickle.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vllm_dynin.processors.codecs.loading import CONFIG_NAME, WEIGHTS_NAME

_STATE_KEYS = ("state_dict", "model", "module", "generator")


def convert(source: Path, directory: Path, *, key: str | None = None, prefix: str = "") -> str:
    """Write `directory/model.safetensors` with the tensors of `source`, names and dtypes kept.

    Args:
        source: file written by `torch.save`.
        directory: created where needed; an existing `model.safetensors` is not overwritten.
        key: entry that holds the state dict; by default the file itself, or the first of
            `state_dict`, `model`, `module`, `generator` that holds one.
        prefix: put before every name.

    Returns:
        A report of what was read, changed and written.

    Raises:
        ValueError: not readable without running code, no state dict inside, or the target exists.
    """
    target = directory / WEIGHTS_NAME
    if target.exists():
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
    directory.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".partial{os.getpid()}")
    save_file(tensors, partial, metadata={"format": "pt", "converted_from": source.name})
    partial.rename(target)  # whole or not at all
    config = source.parent / CONFIG_NAME
    if config.exists() and not (directory / CONFIG_NAME).exists():
        shutil.copyfile(config, directory / CONFIG_NAME)
        notes.append(f"copied {CONFIG_NAME}")
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
    parser.add_argument("--add-prefix", default="", help="put before every tensor name")
    options = parser.parse_args(arguments)
    try:
        print(
            convert(options.source, options.directory, key=options.key, prefix=options.add_prefix)
        )
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
