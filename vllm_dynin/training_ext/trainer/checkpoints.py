"""Checkpoints of a run: whole or not there, and enough to go on bit for bit.

    step-00000100/
        model/           the float32 weights, a checkpoint of the family as any other
        ema/             the moving average, likewise, if there is one
        adapter/         in the place of both where adapters are trained, in PEFT's format
        optimiser/       first and second moments of each weight
        ranks/00000.*    of each process: data position and random generators
        state.json       step, configuration, and the size of every file

Everything is written to a folder with another name, forced to the disk and renamed; older
checkpoints are removed only after that. A run that is killed at any moment leaves its last whole
checkpoint, and at most one unfinished folder that the next save removes.

Tensors are gathered and written one at a time, in safetensors: no pickle, and never the whole
model in the memory of a process that does not hold it anyway. Under DeepSpeed there is no
`optimiser/`, and the run cannot be resumed.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vllm_dynin import checkpoint
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.training_ext.lora import adapted, load_adapter, save_adapter
from vllm_dynin.training_ext.trainer.config import TrainConfig
from vllm_dynin.training_ext.trainer.optimiser import MOMENTS, trained_weights
from vllm_dynin.training_ext.trainer.parallel import Parallel, fill, whole

FORMAT = 1
"""Version of the layout above."""

_NAME = re.compile(r"step-(\d{8})")
_STATE = "state.json"
ADAPTER = "adapter"


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a checkpoint holds beside tensors.

    Args:
        step: optimiser steps done.
        world_size: processes that wrote it.
        config: of the run.
        files: relative name and size of every other file, in bytes.
        identity: what else decides what is trained, by name; empty where nothing said.
    """

    step: int
    world_size: int
    config: dict[str, Any]
    files: dict[str, int]
    identity: dict[str, Any] = field(default_factory=dict)


# --- finding --------------------------------------------------------------------------------------


def name_of(step: int) -> str:
    """Name of the folder of a checkpoint."""
    return f"step-{step:08d}"


def whole_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, the oldest first; damaged ones are left out."""
    if not folder.is_dir():
        return []
    named = [path for path in sorted(folder.iterdir()) if _NAME.fullmatch(path.name)]
    return [path for path in named if _is_whole(path)]


def _is_whole(path: Path) -> bool:
    try:
        files = read_state(path).files
    except ValueError:
        return False
    return all(
        (path / name).is_file() and (path / name).stat().st_size == size
        for name, size in files.items()
    )


def read_state(path: Path) -> RunState:
    """Read `state.json` of a checkpoint.

    Raises:
        ValueError: it is missing, damaged, or of another version.
    """
    try:
        values = json.loads((path / _STATE).read_text(encoding="utf-8"))
        version = values.pop("format")
        state = RunState(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no whole training checkpoint ({_STATE}: {error}); give a folder step-… "
            "that a run wrote"
        ) from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version}, this version reads {FORMAT}")
    return state


# --- saving ---------------------------------------------------------------------------------------


def save(
    folder: Path,
    *,
    step: int,
    model: LLaDA,
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, Tensor] | None,
    feed_state: Mapping[str, Any],
    config: TrainConfig,
    parallel: Parallel,
    identity: Mapping[str, Any],
    base: Path | None = None,
    tokenizer: Any = None,
    keep: int = 2,
) -> Path:
    """Write a checkpoint of every process's state; all of them call this together.

    Args:
        folder: holds the checkpoints of the run.
        step: optimiser steps done.
        model: with float32 weights, sharded or not.
        optimizer: AdamW over its parameters.
        average: moving average by name, or None.
        feed_state: position of this rank's data, as JSON.
        config: of the run.
        parallel: its processes.
        identity: what else decides what is trained, by name, as JSON values.
        base: the checkpoint that adapters belong to.
        tokenizer: anything with `save_pretrained(folder)`; goes into `model/`.
        keep: how many checkpoints stay; 0 keeps all.

    Returns:
        The folder of the checkpoint.
    """
    target = folder / name_of(step)
    work = folder / f".{target.name}.tmp"
    if parallel.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".step-*.tmp"):
            shutil.rmtree(stale)
        (work / "ranks").mkdir(parents=True)
    parallel.barrier()
    _save_rank(work / "ranks", parallel.rank, feed_state)
    is_adapted = any(True for _ in adapted(model))
    if is_adapted:
        if parallel.is_main:
            save_adapter(work / ADAPTER, model, base="" if base is None else str(base))
    else:
        weights = model.named_parameters()
        gathered = ((name, parallel.full_weight(weight)) for name, weight in weights)
        _save_model(work / "model", model, gathered, parallel, tokenizer)
    if average is not None:
        gathered = ((name, whole(weight)) for name, weight in average.items())
        _save_model(work / "ema", model, gathered, parallel, tokenizer)
    if not parallel.is_deepspeed:
        _save_optimizer(work / "optimiser", model, optimizer, parallel)
    parallel.barrier()
    if parallel.is_main:
        _finish(work, target, step, config, parallel.world_size, identity)
        if keep:
            for old in whole_checkpoints(folder)[:-keep]:
                shutil.rmtree(old)
    parallel.barrier()
    return target


def _save_model(
    path: Path,
    model: LLaDA,
    gathered: Iterator[tuple[str, Tensor]],
    parallel: Parallel,
    tokenizer: Any,
) -> None:
    if parallel.is_main:
        checkpoint.save_checkpoint(path, model.config, gathered, tokenizer)
    else:
        for _ in gathered:  # gathering takes every process
            pass


def _save_optimizer(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, parallel: Parallel
) -> None:
    """One file for each weight, so that no more than one is held."""
    if parallel.is_main:
        path.mkdir()
    for name, weight in trained_weights(model):
        state = optimizer.state[weight]
        tensors = {key: whole(state[key]).cpu().contiguous() for key in MOMENTS}
        tensors["step"] = state["step"].cpu()
        if parallel.is_main:
            save_file(tensors, path / f"{name}.safetensors")


def _save_rank(folder: Path, rank: int, feed_state: Mapping[str, Any]) -> None:
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    generators = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state()
    save_file(generators, folder / f"{rank:05d}.safetensors")
    values = {"feed": feed_state, "python": [version, words, gauss], "numpy": numpy_state}
    (folder / f"{rank:05d}.json").write_text(json.dumps(values), encoding="utf-8")


def _finish(
    work: Path,
    target: Path,
    step: int,
    config: TrainConfig,
    world_size: int,
    identity: Mapping[str, Any],
) -> None:
    files = sorted(path for path in work.rglob("*") if path.is_file())
    sizes = {str(path.relative_to(work)): path.stat().st_size for path in files}
    state = RunState(
        step=step,
        world_size=world_size,
        config=asdict(config),
        files=sizes,
        identity=dict(identity),
    )
    text = json.dumps({"format": FORMAT, **asdict(state)}, indent=1)
    (work / _STATE).write_text(text + "\n", encoding="utf-8")
    for path in (*files, work / _STATE, *(p for p in work.rglob("*") if p.is_dir()), work):
        _to_disk(path)
    aside = target.with_name(f".{target.name}.old.tmp")
    if target.exists():  # a damaged one, or a run repeated over an old one
        os.replace(target, aside)
    os.replace(work, target)
    _to_disk(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- loading --------------------------------------------------------------------------------------


def load(
    path: Path,
    *,
    model: LLaDA,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None,
    load_feed: Callable[[Mapping[str, Any]], None],
    config: TrainConfig,
    parallel: Parallel,
    identity: Mapping[str, Any],
) -> int:
    """Put a checkpoint back, in place; arguments as for `save`.

    What changes the mathematics of the run must be what it was. How a step is computed may change
    (`_HARMLESS`), the run may be prolonged, and the number of processes may be another one, where
    the data's position does not belong to processes.

    Returns:
        Optimiser steps done.

    Raises:
        ValueError: the checkpoint is of a run that trains something else, or is damaged.
    """
    state = read_state(path)
    if parallel.is_deepspeed:
        raise ValueError(
            f"{path} cannot be resumed under DeepSpeed, which keeps its optimiser in pickled files "
            "that are not read here; use sharding=fsdp2 for runs that are resumed, or start a new "
            f"run from {path / 'model'}"
        )
    _check_same(state, config, identity, path)
    weights = dict(trained_weights(model))
    if (path / ADAPTER).is_dir():
        load_adapter(model, path / ADAPTER)
    else:
        load_weights(path / "model", weights)
        if average is not None:
            load_weights(path / "ema", average)
    for name, weight in weights.items():
        _load_moments(path / "optimiser" / f"{name}.safetensors", weight, optimizer)
    load_feed(_load_rank(path / "ranks", parallel.rank % state.world_size))
    parallel.barrier()
    return state.step


_HARMLESS = (
    "num_micro_batches",
    "is_activation_checkpointed",
    "is_packed",
    "sharding",
    "max_logits",
)
"""Settings that change how a step is computed, and not what comes out of it."""


def _check_same(
    state: RunState, config: TrainConfig, identity: Mapping[str, Any], path: Path
) -> None:
    defaults = {one.name: one.default for one in fields(TrainConfig)}
    saved = {**defaults, **state.config}
    now = asdict(config)
    for name in _HARMLESS:
        saved.pop(name), now.pop(name)
    if now["num_steps"] >= saved["num_steps"]:  # prolonged: the rest of the cosine is longer
        saved.pop("num_steps"), now.pop("num_steps")
    changed = _changes(saved, now)
    if state.identity:
        changed += _changes(state.identity, identity)
    if changed:
        raise ValueError(
            f"{path} was written by a run that trains something else ({'; '.join(changed)}); "
            f"resume with the same, or start a new run from {path / 'model'}. These may change: "
            f"{', '.join(_HARMLESS)}, the number of processes, and num_steps upwards"
        )


def _changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    before, after = (json.loads(json.dumps(dict(values))) for values in (saved, now))
    names = dict.fromkeys((*before, *after))
    return [
        f"{name}: {before.get(name)!r} → {after.get(name)!r}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def load_weights(path: Path, into: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole or sharded, from a checkpoint of the family, one at a time.

    Args:
        path: folder of the checkpoint.
        into: name → tensor; the names must be those of the checkpoint.

    Raises:
        ValueError: a tensor is missing, left over, or of another shape.
    """
    shapes = checkpoint.tensor_shapes(path)
    expected = {name: tuple(tensor.shape) for name, tensor in into.items()}
    if shapes != expected:
        wrong = sorted(
            name for name in shapes.keys() | expected if shapes.get(name) != expected.get(name)
        )
        raise ValueError(
            f"{path} does not fit the model of this run: {', '.join(wrong[:5])} differ; use "
            "the model the checkpoint is of"
        )
    for name, tensor in checkpoint.iter_tensors(path):
        fill(into[name].detach(), tensor)


def _load_moments(file: Path, weight: Tensor, optimizer: torch.optim.Optimizer) -> None:
    saved = load_file(file)
    state = optimizer.state[weight]
    for key in MOMENTS:
        state[key] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        fill(state[key], saved[key])
    state["step"] = saved["step"]  # AdamW keeps it on the CPU


def _load_rank(folder: Path, rank: int) -> dict[str, Any]:
    """Set the random generators of this process; returns its data position."""
    values = json.loads((folder / f"{rank:05d}.json").read_text(encoding="utf-8"))
    version, words, gauss = values["python"]
    random.setstate((version, tuple(words), gauss))
    numpy_state = values["numpy"]
    numpy_state["state"]["key"] = np.asarray(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy_state)
    generators = load_file(folder / f"{rank:05d}.safetensors")
    torch.set_rng_state(generators["torch"])
    if "cuda" in generators and torch.cuda.is_available():
        torch.cuda.set_rng_state(generators["cuda"])
    feed: dict[str, Any] = values["feed"]
    return feed
