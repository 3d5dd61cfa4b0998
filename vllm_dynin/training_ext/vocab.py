"""Vocabulary extension: give a checkpoint rows for image codes or speech units it does not know.

Both tables (embedding and output head) grow together; every other tensor passes through as stored.
`CheckpointReader` reads rows of one tensor at a time, so neither this nor merging (`merge.py`)
holds a checkpoint in memory.

Source: the published recipe states no initialisation. Its code resizes with transformers 4.47.1,
whose "mean" rule always copies the mean of the old rows into each new one.
"""

from __future__ import annotations

import enum
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from vllm_dynin import checkpoint
from vllm_dynin.config import DyninOmniConfig, LLaDAConfig, MMadaConfig

ROW_MULTIPLE = 128
"""Rows of a table are rounded up to a multiple of this, as in the published checkpoints."""

TABLES = (checkpoint.EMBEDDING, checkpoint.HEAD)
"""The tensors whose row count is the size of the vocabulary."""

SLICE_BYTES = 64 * 2**20
"""Tensors are worked on in row slices of about this many bytes in float32."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


class CheckpointReader:
    """Random access to the rows of a checkpoint's tensors, checked against its config.json.

    Args:
        path: checkpoint folder, one file or shards.

    Raises:
        ValueError: the folder is not a whole checkpoint of the family, or a tensor is not stored
            in float32, bfloat16 or float16.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = checkpoint.load_config(path)
        self.shapes = checkpoint.tensor_shapes(path)
        self.num_rows = checkpoint.check_tensors(self.shapes, self.config)
        self.dtypes: dict[str, torch.dtype] = {}
        self._files: dict[str, Path] = {}
        for file in checkpoint.tensor_files(path):
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 - not a mapping
                    if name in self.shapes:
                        self._files[name] = file
                        self.dtypes[name] = _dtype(name, handle.get_slice(name).get_dtype())

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """A copy of rows start … stop - 1 of a tensor, in its stored dtype.

        The file is opened anew each time: an open one keeps every page read from it resident.
        """
        with safe_open(self._files[name], framework="pt") as handle:
            part: Tensor = handle.get_slice(name)[start:stop]
            return part.clone()

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the tokenizer's files; `save_checkpoint` calls it as it would a tokenizer's own."""
        for name in _TOKENIZER_FILES:
            if (self.path / name).is_file():
                shutil.copyfile(self.path / name, Path(folder) / name)


def _dtype(name: str, stored: str) -> torch.dtype:
    known = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    if stored not in known:
        raise ValueError(
            f"tensor {name} is stored as {stored}; only {', '.join(known)} can be averaged, so "
            "use the checkpoint in the precision it was trained in"
        )
    return known[stored]


def row_slices(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut rows start … stop - 1 of a tensor of `shape` into slices of about `SLICE_BYTES`."""
    step = max(1, SLICE_BYTES // (4 * math.prod(shape[1:])))
    for low in range(start, stop, step):
        yield low, min(low + step, stop)


class RowInit(enum.StrEnum):
    """What new rows of a table start as."""

    MEAN = "mean"
    """The mean of the old rows, bit for bit in each: what the published run did."""
    MEAN_NOISE = "mean+noise"
    """The mean plus normal noise whose deviation is `noise_scale` times that of the old rows."""
    CODEBOOK_PROJECTION = "codebook-projection"
    """The mean plus a random projection of each code's codebook vector, at that same deviation."""


@dataclass(frozen=True, kw_only=True)
class ExtendOptions:
    """What to add and how it starts.

    Args:
        num_image_codes: image codes afterwards; None keeps the checkpoint's number.
        num_speech_units: speech units afterwards; None keeps the checkpoint's number.
        init: how new rows start.
        noise_scale: deviation of new rows around the mean, in units of the old rows' own deviation
            per column; read by the two inits that are not `mean`.
        seed: of the noise and of the projection.
        keep_padding: leave rows that exist but meant nothing so far as they are, as the published
            run did (its speech units 0 to 114 sit in such rows); by default they are initialised
            like appended ones.

    Raises:
        ValueError: a number is out of range.
    """

    num_image_codes: int | None = None
    num_speech_units: int | None = None
    init: RowInit = RowInit.MEAN_NOISE
    noise_scale: float = 0.1
    seed: int = 0
    keep_padding: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.noise_scale) or self.noise_scale <= 0:
            raise ValueError(
                f"noise_scale={self.noise_scale} must be above 0; use init=mean for equal rows"
            )


def extended_config(config: LLaDAConfig, options: ExtendOptions) -> LLaDAConfig:
    """The configuration after the extension: codebook sizes, class and `vocab_size`.

    Raises:
        ValueError: codes would vanish, or the ids of existing speech units would move.
    """
    images = options.num_image_codes
    speech = options.num_speech_units
    images = config.image_codebook_size if images is None else images
    speech = config.speech_codebook_size if speech is None else speech
    for what, old, new in (
        ("image codes", config.image_codebook_size, images),
        ("speech units", config.speech_codebook_size, speech),
    ):
        if new < old:
            raise ValueError(f"{new} {what} are fewer than the {old} there are; rows only grow")
    if images > config.image_codebook_size and config.speech_codebook_size:
        raise ValueError(
            f"{images} image codes instead of {config.image_codebook_size} would move the ids of "
            f"{config.speech_codebook_size} speech units behind them; add image codes first"
        )
    classes: tuple[type[LLaDAConfig], ...] = (LLaDAConfig, MMadaConfig, DyninOmniConfig)
    needed = 2 if speech else 1 if images else 0
    cls = classes[max(needed, [c.model_type for c in classes].index(config.model_type))]
    dropped = {"model_type", "architectures", "vocab_size", "embedding_size"}
    values = {key: value for key, value in config.to_dict().items() if key not in dropped}
    values |= {"image_codebook_size": images, "speech_codebook_size": speech}
    if cls is not LLaDAConfig:
        values["codebook_size"] = images
    return cls(**values)


def extend_vocabulary(
    source: str | Path,
    target: str | Path,
    options: ExtendOptions,
    *,
    codebook: Tensor | None = None,
    max_shard_bytes: int = 10**9,
) -> range:
    """Write a copy of `source` whose tables hold the asked-for codes.

    Applying it again with the same options changes nothing: no row gains a meaning then.

    Args:
        source: checkpoint folder.
        target: folder to create.
        options: see `ExtendOptions`.
        codebook: float [added codes, any width], for `codebook-projection` only: one vector per
            added code, in the order of the codes.
        max_shard_bytes: as in `save_checkpoint`.

    Returns:
        The rows that were initialised.

    Raises:
        ValueError: the checkpoint, the options or the codebook do not fit.
    """
    reader = CheckpointReader(source)
    config = extended_config(reader.config, options)
    old, new = reader.config.vocabulary.num_used, config.vocabulary.num_used
    rows = max(reader.num_rows, -(-new // ROW_MULTIPLE) * ROW_MULTIPLE)
    first = old if new > old and not options.keep_padding else reader.num_rows
    _check_codebook(codebook, options, new - old)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, shape in reader.shapes.items():
            if name not in TABLES:
                yield name, reader.rows(name, 0, shape[0])
                continue
            table = torch.empty((rows, shape[1]), dtype=reader.dtypes[name])
            for low, high in row_slices(shape, 0, first):
                table[low:high] = reader.rows(name, low, high)
            if first < rows:
                _fill(table, first, old, options, codebook)
            yield name, table

    checkpoint.save_checkpoint(target, config, tensors(), reader, max_shard_bytes=max_shard_bytes)
    return range(first, rows)


def _check_codebook(codebook: Tensor | None, options: ExtendOptions, added: int) -> None:
    if options.init is not RowInit.CODEBOOK_PROJECTION:
        if codebook is not None:
            raise ValueError(f"init={options.init} reads no codebook; leave it out")
        return
    if options.num_image_codes is not None and options.num_speech_units is not None:
        raise ValueError("codebook-projection adds one modality at a time; run it once for each")
    if codebook is None or codebook.ndim != 2:
        raise ValueError("codebook-projection needs a codebook [added codes, width]")
    if added and len(codebook) != added:
        raise ValueError(f"the codebook has {len(codebook)} vectors for {added} added codes")


def _fill(
    table: Tensor, first: int, first_code: int, options: ExtendOptions, codebook: Tensor | None
) -> None:
    """Initialise rows `first` and up of `table` in place from the rows below."""
    count, width = len(table) - first, table.shape[1]
    mean, deviation = row_statistics(table, first)
    # The same draw for both tables: a code then starts with one geometry on both sides.
    generator = torch.Generator().manual_seed(options.seed)
    fresh = mean.expand(count, width).clone()
    if options.init is RowInit.MEAN_NOISE:
        noise = torch.randn((count, width), generator=generator)
        fresh += options.noise_scale * deviation * noise
    elif options.init is RowInit.CODEBOOK_PROJECTION and codebook is not None:
        vectors = codebook.float() - codebook.float().mean(0)
        vectors /= vectors.square().mean().sqrt().clamp_min(1e-12)
        inner = vectors.shape[1]
        projected = vectors @ torch.randn((inner, width), generator=generator) / math.sqrt(inner)
        skipped = max(0, first - first_code)  # codes in kept padding rows
        wanted = projected[skipped:]
        fresh[: len(wanted)] += options.noise_scale * deviation * wanted
    table[first:] = fresh.to(table.dtype)


def row_statistics(table: Tensor, stop: int) -> tuple[Tensor, Tensor]:
    """Mean and population deviation of each column over the rows below `stop`.

    Accumulated in float64 over row slices; both are returned as float32 [columns].
    """
    width = table.shape[1]
    total, squares = torch.zeros((2, width), dtype=torch.float64)
    for low, high in row_slices(tuple(table.shape), 0, stop):
        total += table[low:high].double().sum(0)
    mean = total / stop
    for low, high in row_slices(tuple(table.shape), 0, stop):
        squares += (table[low:high].double() - mean).square().sum(0)
    return mean.float(), (squares / stop).sqrt().float()
