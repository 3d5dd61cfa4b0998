"""Merging a backbone with its stage-1 descendant, row by row where the vocabulary matters.

M = w·backbone + (1 − w)·stage1 in float32, rounded once to the dtype of the stage-1 tensor. The
embedding and the head are put together by rows, as the strategy says; every other tensor is M.

Source: paper arXiv:2604.00007v1 §4.2 and §7.1 (no code of it is published). `backbone_weight` is
its α as equation 2 reads; its Table 9 looks as if α weighed stage 1 (docs/merging.md).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vllm_dynin import checkpoint
from vllm_dynin.training_ext.vocab import SLICE_BYTES, TABLES, CheckpointReader, row_slices

STAGE1_CONTROLS = ("s2t", "soa", "eoa", "t2s", "v2t")
"""Control tokens that stage 1 is the first to use (names of `Vocabulary`)."""

MAX_SHARD_BYTES = 10**9
"""Default size of the files a merge writes; one shard is held while it fills."""

# Must agree, because they change what equal weights compute or which row an id means.
_SAME_FIELDS = ("n_heads", "n_kv_heads", "rope_theta", "rms_norm_eps", "text_vocab_size")
_MAX_NAMED = 5


class Strategy(enum.StrEnum):
    """What the rows below the boundary become; those above it always come from stage 1."""

    SHARED = "shared"
    STAGE1_ONLY = "stage1-only"
    DISENTANGLED = "modality-disentangled"


class RowSource(enum.StrEnum):
    """Where a run of rows comes from."""

    BACKBONE = "backbone"
    STAGE1 = "stage1"
    MERGED = "merged"


_BELOW = {
    Strategy.SHARED: RowSource.MERGED,
    Strategy.STAGE1_ONLY: RowSource.STAGE1,
    Strategy.DISENTANGLED: RowSource.BACKBONE,
}


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """How to merge.

    Args:
        strategy: rule for the rows below the boundary.
        backbone_weight: weight of the backbone in M, 0 to 1; stage 1 gets the rest.
        row_boundary: rows from here on come from stage 1; None takes the first speech id.
        extra_rows_from_stage1: rows below the boundary to take from stage 1 all the same.

    Raises:
        ValueError: the weight is outside 0 … 1 or a row is negative.
    """

    strategy: Strategy = Strategy.DISENTANGLED
    backbone_weight: float = 0.6
    row_boundary: int | None = None
    extra_rows_from_stage1: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.backbone_weight <= 1:
            raise ValueError(
                f"backbone_weight={self.backbone_weight} is outside 0 … 1; 1 is the backbone "
                "alone, 0 stage 1 alone"
            )
        for row in (self.row_boundary or 0, *self.extra_rows_from_stage1):
            if row < 0:
                raise ValueError(f"row {row} is negative; rows count from 0")


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """What a merge will do, known from the file headers alone.

    Args:
        options: as asked.
        row_boundary: the boundary in force.
        segments: (first row, end, source) runs that cover the tables, in order.
        num_blended: tensors that are M as a whole.
        num_parameters: of the result.
        output_bytes: size of the result's tensors.
        peak_bytes: upper bound of memory held by the merge at once, on top of the process.
        reverted_controls: names of `STAGE1_CONTROLS` whose rows come from the backbone alone.
    """

    options: MergeOptions
    row_boundary: int
    segments: tuple[tuple[int, int, RowSource], ...]
    num_blended: int
    num_parameters: int
    output_bytes: int
    peak_bytes: int
    reverted_controls: tuple[str, ...]

    def lines(self) -> list[str]:
        """The plan in words."""
        weight = self.options.backbone_weight
        lines = [
            f"strategy {self.options.strategy}: {weight:g} backbone + {1 - weight:g} stage 1",
            f"{self.num_blended} tensors blended; the 2 tables by rows, boundary "
            f"{self.row_boundary}:",
            *(f"  rows {low} to {high - 1}: {source}" for low, high, source in self.segments),
            f"{self.num_parameters:,} parameters, {self.output_bytes / 1e9:.2f} GB to write, "
            f"at most {self.peak_bytes / 2**30:.2f} GiB of memory",
        ]
        if self.reverted_controls:
            lines.append(
                "note: control tokens that stage 1 was the first to train return to the backbone: "
                + ", ".join(self.reverted_controls)
            )
        return lines


def row_segments(
    num_backbone: int, num_stage1: int, boundary: int, options: MergeOptions
) -> tuple[tuple[int, int, RowSource], ...]:
    """Runs of rows of a table and where each comes from, in order and without gaps.

    Args:
        num_backbone: rows of the backbone's table.
        num_stage1: rows of stage 1's table, and of the result.
        boundary: first row that comes from stage 1.
        options: the strategy and extra rows.

    Raises:
        ValueError: the boundary or an extra row is outside the tables.
    """
    if boundary > num_backbone or num_backbone > num_stage1:
        raise ValueError(
            f"row_boundary={boundary} with {num_backbone} backbone rows and {num_stage1} stage-1 "
            "rows; boundary ≤ backbone rows ≤ stage-1 rows must hold, so lower the boundary or "
            "check that the checkpoints are not swapped"
        )
    extra = sorted(set(options.extra_rows_from_stage1))
    if extra and extra[-1] >= num_stage1:
        raise ValueError(f"extra row {extra[-1]} is outside the table's {num_stage1} rows")
    below = _BELOW[options.strategy]
    runs: list[tuple[int, int, RowSource]] = []
    at = 0
    cuts = [(row, row + 1) for row in extra if row < boundary] + [(boundary, num_stage1)]
    for low, high in cuts:
        runs += [(at, low, below), (low, high, RowSource.STAGE1)]
        at = high
    joined: list[tuple[int, int, RowSource]] = []
    for low, high, source in runs:
        if low == high:
            continue
        if joined and joined[-1][2] is source:
            joined[-1] = (joined[-1][0], high, source)
        else:
            joined.append((low, high, source))
    return tuple(joined)


def plan_merge(
    backbone: CheckpointReader,
    stage1: CheckpointReader,
    options: MergeOptions,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> MergePlan:
    """Check that two checkpoints merge and say what merging them does; reads no weights.

    Raises:
        ValueError: the checkpoints differ in more than their new rows (fields and tensors are
            named), or the options do not fit them.
    """
    _check_compatible(backbone, stage1)
    vocabulary = stage1.config.vocabulary
    boundary = vocabulary.speech.start if options.row_boundary is None else options.row_boundary
    segments = row_segments(backbone.num_rows, stage1.num_rows, boundary, options)
    shapes = _ordered_shapes(stage1)
    sizes = [
        torch.Size(shape).numel() * stage1.dtypes[name].itemsize for name, shape in shapes.items()
    ]
    kept = [range(low, high) for low, high, source in segments if source is RowSource.BACKBONE]
    return MergePlan(
        options=options,
        row_boundary=boundary,
        segments=segments,
        num_blended=len(sizes) - len(TABLES),
        num_parameters=sum(torch.Size(shape).numel() for shape in shapes.values()),
        output_bytes=sum(sizes),
        peak_bytes=peak_bytes(sizes, max_shard_bytes),
        reverted_controls=tuple(
            name
            for name in STAGE1_CONTROLS
            if any(getattr(vocabulary, name) in rows for rows in kept)
        ),
    )


def _ordered_shapes(reader: CheckpointReader) -> dict[str, tuple[int, ...]]:
    # The two tables at the two ends, so that they are never held together.
    return checkpoint.expected_shapes(reader.config, reader.num_rows)


def peak_bytes(sizes: list[int], max_shard_bytes: int) -> int:
    """Upper bound of the memory a streamed merge holds at once.

    The shard that fills, the tensor that is put together, and eight float32 row slices: two read,
    one blended and one to spare, and as much again for the pages of the files they are read from.
    safetensors (0.8) writes a shard from where it lies, without another copy.

    Args:
        sizes: bytes of each tensor of the result, in the order they are written.
        max_shard_bytes: as given to `save_checkpoint`.
    """
    held = peak = 0
    for size in sizes:
        peak = max(peak, held + size)
        held = size if held + size > max_shard_bytes else held + size
    return peak + 8 * SLICE_BYTES


def merge(
    backbone: str | Path,
    stage1: str | Path,
    target: str | Path,
    options: MergeOptions | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> MergePlan:
    """Merge two checkpoint folders into a third, one tensor at a time.

    config.json and tokenizer are those of stage 1. `target` appears whole or not at all.

    Args:
        backbone: folder of the checkpoint stage 1 started from.
        stage1: folder of the result of stage 1.
        target: folder to create.
        options: None for modality-disentangled at 0.6.
        max_shard_bytes: size of the files written.

    Returns:
        What was done.

    Raises:
        ValueError: the checkpoints do not merge, `target` exists, or a merged value is not finite.
    """
    options = MergeOptions() if options is None else options
    first, second = CheckpointReader(backbone), CheckpointReader(stage1)
    plan = plan_merge(first, second, options, max_shard_bytes)
    checkpoint.save_checkpoint(
        target,
        second.config,
        merged_tensors(first, second, plan),
        second,
        max_shard_bytes=max_shard_bytes,
    )
    return plan


def merged_tensors(
    backbone: CheckpointReader, stage1: CheckpointReader, plan: MergePlan
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, merged tensor) in `expected_shapes` order, each in stage 1's dtype."""
    weight = plan.options.backbone_weight
    for name, shape in _ordered_shapes(stage1).items():
        merged = torch.empty(shape, dtype=stage1.dtypes[name])
        runs = plan.segments if name in TABLES else ((0, shape[0], RowSource.MERGED),)
        for start, stop, source in runs:
            for low, high in row_slices(shape, start, stop):
                if source is RowSource.STAGE1:
                    merged[low:high] = stage1.rows(name, low, high)
                elif source is RowSource.BACKBONE:
                    merged[low:high] = backbone.rows(name, low, high)
                else:
                    blended = backbone.rows(name, low, high).float().mul_(weight)
                    blended.add_(stage1.rows(name, low, high).float(), alpha=1 - weight)
                    merged[low:high] = blended
                if not torch.isfinite(merged[low:high]).all():
                    raise ValueError(
                        f"rows {low} to {high - 1} of {name} are not finite after merging "
                        f"({source}); one of the checkpoints is damaged, or {merged.dtype} is too "
                        "narrow for these values"
                    )
        yield name, merged


def _check_compatible(backbone: CheckpointReader, stage1: CheckpointReader) -> None:
    problems = [
        f"config {field}: {getattr(backbone.config, field)} against {getattr(stage1.config, field)}"
        for field in _SAME_FIELDS
        if getattr(backbone.config, field) != getattr(stage1.config, field)
    ]
    old, new = backbone.config.image_codebook_size, stage1.config.image_codebook_size
    # Image codes end where speech begins: another number of them gives the rows other meanings.
    if old != new:
        problems.append(f"config image_codebook_size: {old} against {new}")
    tensors = []
    for name in sorted(backbone.shapes.keys() | stage1.shapes.keys()):
        shapes = [reader.shapes.get(name) for reader in (backbone, stage1)]
        if name in TABLES:
            shapes = [None if shape is None else shape[1:] for shape in shapes]
        if shapes[0] != shapes[1]:
            tensors.append(f"{name} {shapes[0]} against {shapes[1]}")
    if len(tensors) > _MAX_NAMED:
        tensors[_MAX_NAMED:] = [f"{len(tensors) - _MAX_NAMED} tensors more"]
    if problems or tensors:
        raise ValueError(
            f"{backbone.path} and {stage1.path} cannot be merged (backbone against stage 1): "
            + "; ".join(problems + tensors)
            + ". Use the checkpoint that stage 1 started from"
        )
