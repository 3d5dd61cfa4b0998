"""Training at full size on paper: parameters, memory per GPU, tokens per step. Allocates nothing.

Parameters come from the shapes every loader checks (`checkpoint.expected_shapes`). Memory is
arithmetic, an estimate of what must be there; fragmentation, the CUDA context (about 1 GiB) and
communication workspaces come on top.

Stages, batch, GPUs and lengths come from `stages`.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import torch

from vllm_dynin import checkpoint
from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.processors.templates import DIRECTIONS
from vllm_dynin.tokens import Modality
from vllm_dynin.training_ext.head_loss import MAX_LOGITS
from vllm_dynin.training_ext.stages import StageConfig, StageTask, stage1, stage2, stage3
from vllm_dynin.training_ext.stages.recipes import image_tokens

_BF16, _FP32 = 2, 4
_TEXT_BLOCK = 128  # text of images and speech at most, `max_seq_length` of the release
_NAMES = {Task.IMAGE_TO_TEXT: "I2T"}  # where the paper's name is not ours in capitals
# Tensors alive in the backward pass of a block, measured; norms and rotations are float32 in both.
_BLOCK_HIDDEN = {_FP32: 11.5, _BF16: 15.0}
_BLOCK_MLP = 6
_ZERO_BUCKET = 5 * 10**8  # DeepSpeed's default reduce_bucket_size, in elements
_ZERO3_LIVE = 10**9  # its default stage3_max_live_parameters


class Sharding(enum.StrEnum):
    """How the state is spread over the GPUs."""

    NONE = "none"
    """Every GPU holds everything (DDP): float32 weights, autocast to bfloat16."""
    FSDP2 = "fsdp2"
    """`fully_shard` per block: float32 shards, bfloat16 gathered, float32 reduction."""
    ZERO2 = "zero2"
    """Whole bfloat16 weights; gradients, float32 masters and moments sharded."""
    ZERO3 = "zero3"
    """Everything sharded."""


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One kind of training row.

    Args:
        task: direction, as the paper writes it.
        length: positions of the canvas, at most.
        num_targets: positions that can be masked, at most.
        columns: classes in the softmax: `text` (the whole table), `image` or `speech`.
    """

    task: str
    length: int
    num_targets: int
    columns: str


def sequence(task: Task, stage_task: StageTask) -> Sequence:
    """The longest row of a direction of a stage.

    Args:
        task: the direction.
        stage_task: its resolution, frames, units and lengths.

    Raises:
        ValueError: the stage does not say how long its rows are.
    """
    policy, name = stage_task.policy, _NAMES.get(task, task.value.upper())
    units = stage_task.max_units
    if DIRECTIONS[task].output is Modality.IMAGE and stage_task.resolution:
        codes = image_tokens(stage_task.resolution)
        is_edit = task is Task.IMAGE_TO_IMAGE
        length = _TEXT_BLOCK + (5 + 2 * codes if is_edit else 2 + codes)
        return Sequence(task=name, length=length, num_targets=codes, columns="image")
    if task is Task.TEXT_TO_SPEECH and units and policy.num_targets:
        length = _TEXT_BLOCK + 1 + policy.num_targets
        return Sequence(task=name, length=length, num_targets=policy.num_targets, columns="speech")
    medium = 0
    if units:
        medium = 3 + units  # task token, soa, eoa
    elif task is not Task.TEXT_TO_TEXT:
        medium = 3 + (stage_task.num_frames or 1) * image_tokens(stage_task.resolution or 0)
    longest = policy.row_length or policy.max_length
    if policy.num_targets:
        length = medium + _TEXT_BLOCK + policy.num_targets
        length = length if longest is None else min(length, longest)
        return Sequence(task=name, length=length, num_targets=policy.num_targets, columns="text")
    if longest:
        return Sequence(task=name, length=longest, num_targets=longest - medium, columns="text")
    raise ValueError(
        f"the rows of {task.value} have no length; give its policy row_length, max_length or "
        "num_targets, and its stage a resolution or units"
    )


def sequences(stage: StageConfig) -> tuple[Sequence, ...]:
    """The kinds of rows of a stage."""
    return tuple(sequence(task, one) for task, one in stage.tasks.items())


def tokens_per_step(stage: StageConfig) -> float:
    """Positions per optimiser step with every row at its full length."""
    shares = [one.share or 0.0 for one in stage.tasks.values()]
    lengths = [row.length for row in sequences(stage)]
    mean = sum(s * n for s, n in zip(shares, lengths, strict=True)) / sum(shares)
    return stage.global_batch * mean


def paper_stages() -> tuple[StageConfig, ...]:
    """The three stages of the paper."""
    return stage1(), stage2(), stage3()


def num_parameters(config: LLaDAConfig, num_rows: int | None = None) -> dict[str, int]:
    """Parameters by part: `embedding`, `head`, `blocks`, `norm`, `total`.

    Args:
        config: sizes.
        num_rows: rows of the tables; None takes `config.vocab_size`.
    """
    shapes = checkpoint.expected_shapes(config, num_rows or config.vocab_size)
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    parts = {
        "embedding": sizes[checkpoint.EMBEDDING],
        "head": sizes[checkpoint.HEAD],
        "norm": sizes[checkpoint.FINAL_NORM],
    }
    total = sum(sizes.values())
    return {**parts, "blocks": total - sum(parts.values()), "total": total}


def state_bytes(
    config: LLaDAConfig, sharding: Sharding, num_gpus: int, num_rows: int | None = None
) -> dict[str, int]:
    """Bytes per GPU of weights, gradients, optimiser and what is gathered for a moment.

    Float32 masters and AdamW moments in every mode (bfloat16 ones lose most updates at these
    learning rates).

    Args:
        config: sizes.
        sharding: how the state is spread.
        num_gpus: GPUs the state is spread over.
        num_rows: rows of the tables; None takes `config.vocab_size`.

    Returns:
        `weights` (bfloat16 copies and float32 masters), `gradients`, `moments`, `transient`.

    Raises:
        ValueError: there is no GPU.
    """
    if num_gpus < 1:
        raise ValueError(f"num_gpus={num_gpus}; at least one is needed")
    counts = num_parameters(config, num_rows)
    total = counts["total"]
    shard = -(-total // num_gpus)
    block = counts["blocks"] // config.n_layers
    root = total - counts["blocks"]
    if sharding is Sharding.NONE:
        # Autocast keeps a bfloat16 copy of what one forward used.
        return _state(_FP32 * total, _FP32 * total, 2 * _FP32 * total, _BF16 * total)
    if sharding is Sharding.FSDP2:
        # Tables stay gathered from forward to backward; one block computes, the next is gathered;
        # gradients of the larger of the two are whole, in bfloat16 and in float32 for reducing.
        gathered = _BF16 * (root + 2 * block) + (_BF16 + _FP32) * max(root, block)
        return _state(_FP32 * shard, _FP32 * shard, 2 * _FP32 * shard, gathered)
    bucket = _BF16 * min(_ZERO_BUCKET, total)
    if sharding is Sharding.ZERO2:
        return _state(_BF16 * total + _FP32 * shard, _BF16 * shard, 2 * _FP32 * shard, bucket)
    live = _BF16 * min(_ZERO3_LIVE, total) + bucket
    return _state((_BF16 + _FP32) * shard, _BF16 * shard, 2 * _FP32 * shard, live)


def _state(weights: int, gradients: int, moments: int, transient: int) -> dict[str, int]:
    return {
        "weights": weights,
        "gradients": gradients,
        "moments": moments,
        "transient": transient,
    }


def activation_bytes(
    config: LLaDAConfig,
    row: Sequence,
    num_rows: int | None = None,
    *,
    rows: int = 1,
    itemsize: int = _BF16,
    max_logits: int = MAX_LOGITS,
) -> int:
    """Bytes of a pass over some rows, blocks recomputed, memory-efficient attention.

    The input of every layer; one layer computed again with its gradients (`_BLOCK_HIDDEN` tensors
    of the hidden size, `_BLOCK_MLP` of the MLP's, measured); or, where that is more, the logits of
    a chunk, in float32 beside their own dtype (`head_loss`). The whole loss would keep 15 bytes for
    each class of each masked position.

    Args:
        config: sizes.
        row: what each row is.
        num_rows: rows of the tables; None takes `config.vocab_size`.
        rows: of the pass.
        itemsize: bytes of a number in forward and backward.
        max_logits: alive at once.
    """
    kept = itemsize * config.n_layers * config.d_model
    block = itemsize * (
        _BLOCK_HIDDEN[itemsize] * config.d_model + _BLOCK_MLP * config.mlp_hidden_size
    )
    columns = {
        "text": num_rows or config.vocab_size,
        "image": config.image_codebook_size,
        "speech": config.speech_codebook_size + 2,  # end of speech and end of sequence
    }[row.columns]
    logits = min(max(max_logits, columns), rows * row.num_targets * columns)
    of_loss = logits * (_FP32 if itemsize == _FP32 else _FP32 + itemsize)
    return rows * row.length * kept + max(math.ceil(rows * row.length * block), of_loss)


def peak_bytes(
    config: LLaDAConfig,
    row: Sequence,
    num_rows: int | None = None,
    *,
    rows: int = 1,
    itemsize: int = _FP32,
    max_logits: int = MAX_LOGITS,
) -> int:
    """The most bytes of a step of one process without shards, in its second step and later.

    Either in a pass, when weights, moments and the head's gradient are there and the others not
    yet; or in the update, with all gradients and two temporaries of the largest tensor (AdamW one
    tensor at a time, as on a CPU).

    Args:
        config: sizes.
        row: what each row is.
        num_rows: rows of the tables.
        rows: of a pass.
        itemsize: bytes of a number in forward and backward.
        max_logits: alive at once.
    """
    counts = num_parameters(config, num_rows)
    given = {"rows": rows, "itemsize": itemsize, "max_logits": max_logits}
    in_a_pass = _FP32 * counts["head"] + activation_bytes(config, row, num_rows, **given)
    in_update = _FP32 * counts["total"] + 2 * _FP32 * counts["head"]
    return 3 * _FP32 * counts["total"] + max(in_a_pass, in_update)


def disk_bytes(config: LLaDAConfig, num_rows: int | None = None, *, keep: int = 2) -> int:
    """Bytes on disk of a run's checkpoints: float32 weights and two moments each.

    Args:
        config: sizes.
        num_rows: rows of the tables.
        keep: checkpoints that stay; one more is being written before the oldest goes.
    """
    return (keep + 1) * 3 * _FP32 * num_parameters(config, num_rows)["total"]


def report(
    config: LLaDAConfig,
    *,
    num_rows: int | None = None,
    num_gpus: int | None = None,
    rows_per_gpu: int | None = None,
    stages: tuple[StageConfig, ...] | None = None,
) -> str:
    """Parameters, memory and tokens of every stage under every sharding, as text.

    Args:
        config: sizes.
        num_rows: rows of the tables; None takes `config.vocab_size`.
        num_gpus: None takes each stage's own.
        rows_per_gpu: rows of a pass on one GPU; None is what the stage's batch and micro-batches
            make of them. The kind that takes most is assumed for all of them.
        stages: None for the paper's.

    Raises:
        ValueError: a number is not positive.
    """
    if rows_per_gpu is not None and rows_per_gpu < 1:
        raise ValueError(f"rows_per_gpu={rows_per_gpu}; at least one row is needed")
    counts = num_parameters(config, num_rows)
    lines = [f"{name:10} {count:>14,} parameters" for name, count in counts.items()]
    for stage in stages or paper_stages():
        gpus = stage.num_gpus if num_gpus is None else num_gpus
        if gpus < 1:
            raise ValueError(f"num_gpus={gpus}; at least one is needed")
        own = math.ceil(stage.global_batch / gpus / stage.train.num_micro_batches)
        rows = own if rows_per_gpu is None else rows_per_gpu
        active = max(
            activation_bytes(config, row, num_rows, rows=rows, max_logits=stage.train.max_logits)
            for row in sequences(stage)
        )
        disk = disk_bytes(config, num_rows)
        lines += [
            "",
            f"{stage.name}: {gpus} GPUs, {stage.global_batch} sequences a step "
            f"({stage.global_batch / gpus:g} a GPU), {tokens_per_step(stage):,.0f} tokens a step "
            f"({tokens_per_step(stage) / gpus:,.0f} a GPU)",
            "  " + ", ".join(f"{row.task} {row.length}" for row in sequences(stage)),
            f"  {rows} rows in a pass on a GPU; {disk / 3e9:.0f} GB a checkpoint, "
            f"{disk / 1e9:.0f} GB while the third is written",
        ]
        if stage.global_batch % gpus:
            lines.append(f"  note: {stage.global_batch} does not divide over {gpus} GPUs")
        for sharding in Sharding:
            parts = state_bytes(config, sharding, gpus, num_rows) | {"activations": active}
            text = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in parts.items())
            total = sum(parts.values()) / 2**30
            lines.append(f"  {sharding:6} {total:6.1f} GiB a GPU ({text})")
    return "\n".join(lines)
