"""A model and its codecs from the hub (or from downloaded copies) into one folder that is served.

Nothing that is downloaded is run: no Python file is taken, weights are safetensors, and what is
only there as a pickle is read as plain tensors (`weights_only`) and written anew. Every file is
held against the hash that the hub states for it, every tensor against the model's shapes, and
the codecs are loaded once, before the folder gets its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from vllm_dynin import checkpoint
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.processors.codecs.convert import convert
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.speech import SpeechCodec
from vllm_dynin.processors.media import IMAGE_CODEC, SPEECH_CODEC, published_codec

Say = Callable[[str], None]

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SMALL = (".json", ".jinja", ".txt", ".model", ".npy", ".md")
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state")
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Sources:
    """Where the parts come from: repository ids or folders.

    Args:
        model: the checkpoint.
        image_codec: None for what its config or its family names.
        speech_codec: likewise.
        revision: branch, tag or commit of the model's repository.
    """

    model: str
    image_codec: str | None = None
    speech_codec: str | None = None
    revision: str | None = None


def fetch(sources: Sources, target: Path, say: Say = print) -> None:
    """Make the folder.

    Downloads lie in a folder beside the target until all of it is right, so a call that was
    interrupted, or that failed, goes on where it stopped.

    Args:
        sources: where the parts come from.
        target: folder to create.
        say: is told what is done, a line at a time.

    Raises:
        ValueError: the target exists, a repository or a file in it cannot be had, a hash or a
            shape differs, or weights cannot be read without running code.
    """
    if target.exists():
        raise ValueError(f"{target} exists; remove it, or name another folder")
    work = target.with_name(f".{target.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    say(f"model: {sources.model}")
    model = _collected(sources.model, sources.revision, work / "model", say)
    config = _checked_model(model, say)
    for name, given, check in (
        (IMAGE_CODEC, sources.image_codec, _check_image),
        (SPEECH_CODEC, sources.speech_codec, _check_speech),
    ):
        if not _has(config, name):
            continue
        source = given or _named_codec(model, config, name)
        if source is None:
            say(f"{name}: none is known for model_type {config.model_type!r}; that input and "
                f"output will be off (--{name.replace('_', '-')} names one)")  # fmt: skip
            continue
        say(f"{name}: {source}")
        folder = _collected(source, None, work / name, say)
        _converted_codec(folder, name, say)
        say(f"  {check(folder)}")
        if folder != model / name:
            shutil.rmtree(model / name, ignore_errors=True)
            os.replace(folder, model / name)
        _point_to(model, name)
    os.replace(model, target)
    shutil.rmtree(work, ignore_errors=True)


# --- files ----------------------------------------------------------------------------------------


def _collected(source: str, revision: str | None, folder: Path, say: Say) -> Path:
    """The wanted files of a repository or a folder, in a folder of ours."""
    if Path(source).is_dir():
        names = [p.relative_to(source).as_posix() for p in Path(source).rglob("*") if p.is_file()]
        for name in wanted_files(names):
            into = folder / name
            into.parent.mkdir(parents=True, exist_ok=True)
            if not into.exists():
                shutil.copyfile(Path(source) / name, into)
        return folder
    return _download(source, revision, folder, say)


def wanted_files(names: list[str]) -> list[str]:
    """Which files of a repository are taken: configuration, tokenizer, weights; never code.

    Args:
        names: paths in the repository, with slashes.

    Returns:
        Pickles only in folders that have no safetensors.
    """
    paths = [
        path
        for path in map(PurePosixPath, sorted(names))
        if not path.is_absolute() and not any(part.startswith(".") for part in path.parts)
    ]
    has_safetensors = {path.parent for path in paths if path.suffix == ".safetensors"}

    def is_wanted(path: PurePosixPath) -> bool:
        if path.suffix in PICKLES:
            is_other = path.name.startswith(_NO_WEIGHTS)
            return path.parent not in has_safetensors and not is_other
        return path.suffix in (".safetensors", *_SMALL) or path.name == "LICENSE"

    return [path.as_posix() for path in paths if is_wanted(path)]


def _download(repository: str, revision: str | None, folder: Path, say: Say) -> Path:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    hub = HfApi()
    try:
        found = hub.model_info(repository, revision=revision, files_metadata=True)
        entries = {entry.rfilename: entry for entry in found.siblings or ()}
        for name in wanted_files(list(entries)):
            file = Path(hub.hf_hub_download(repository, name, revision=found.sha, local_dir=folder))
            _check_hash(file, entries[name], repository)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{repository!r} is no folder and could not be fetched from the hub ({error}); for a "
            "gated repository log in with `hf auth login`, and where there is no network name a "
            "folder with a downloaded copy"
        ) from error
    say(f"  {len(wanted_files(list(entries)))} files at commit {found.sha}, hashes as the hub "
        "states them")  # fmt: skip
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub client's notes
    return folder


def _check_hash(file: Path, entry: Any, repository: str) -> None:
    """Hold a file against what the hub says of it: SHA-256, or git's hash of a small file."""
    size = file.stat().st_size
    if entry.lfs is not None:
        stated, digest = entry.lfs.sha256, hashlib.sha256()
    elif entry.blob_id is not None:
        stated, digest = entry.blob_id, hashlib.sha1(usedforsecurity=False)
        digest.update(b"blob %d\0" % size)
    else:
        return
    with file.open("rb") as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != stated:
        file.unlink()
        raise ValueError(
            f"{entry.rfilename} of {repository} has the hash {digest.hexdigest()}, and the hub "
            f"states {stated}; it was damaged on the way and is removed here: call again"
        )


# --- the model ------------------------------------------------------------------------------------


def _checked_model(folder: Path, say: Say) -> LLaDAConfig:
    config = checkpoint.load_config(folder)
    shards = sorted(file for file in folder.iterdir() if file.suffix in PICKLES)
    if shards and not list(folder.glob("*.safetensors")):
        whole = folder.with_name("converted")
        shutil.rmtree(whole, ignore_errors=True)
        checkpoint.write_folder(whole, _pickled(shards), lambda work, shapes: None)
        for file in whole.iterdir():
            os.replace(file, folder / file.name)
        whole.rmdir()
        for file in [*shards, *folder.glob("*.bin.index.json")]:
            file.unlink()
        say(f"  converted {len(shards)} files to safetensors")
    shapes = checkpoint.tensor_shapes(folder)
    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        rows = checkpoint.table_rows(shapes)  # the rest is the quantisation method's to check
    else:
        rows = checkpoint.check_tensors(shapes, config)
    say(f"  {len(shapes)} tensors as the model has them, {rows} rows in the token table")
    return config


def _pickled(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    for file in files:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # the old-format unpickler raises whatever garbage leads it to
            raise ValueError(
                f"{file.name} cannot be read as plain tensors ({error}); ask for the weights as "
                "safetensors where they were published"
            ) from error
        for name, tensor in state.items():
            if isinstance(tensor, torch.Tensor):
                yield name, tensor.clone()


# --- the codecs -----------------------------------------------------------------------------------


def _has(config: LLaDAConfig, name: str) -> bool:
    size = config.image_codebook_size if name == IMAGE_CODEC else config.speech_codebook_size
    return bool(size)


def _named_codec(model: Path, config: LLaDAConfig, name: str) -> str | None:
    named: str | None = getattr(config, name, None)
    if (model / (named or name)).is_dir():
        return str(model / (named or name))
    return named or published_codec(config.model_type, name)


def _converted_codec(folder: Path, name: str, say: Say) -> None:
    """Safetensors in place of pickles, in the two shapes that are known."""
    if any(folder.glob("*.safetensors")):
        return
    files = sorted(file for file in folder.rglob("*") if file.suffix in PICKLES)
    parts = {
        prefix: [file for file in files if word in file.name.lower()]
        for prefix, word in (("encoder.", "s2u"), ("decoder.", "u2s"))
    }
    if len(files) == 1:
        report = [convert(files[0], folder)]
    elif len(files) == 2 and all(len(found) == 1 for found in parts.values()):
        report = [
            convert(parts["encoder."][0], folder, prefix="encoder."),
            convert(parts["decoder."][0], folder, prefix="decoder.", styles=folder),
        ]
    else:
        names = ", ".join(file.relative_to(folder).as_posix() for file in files) or "no weights"
        raise ValueError(
            f"the {name} has {names}: which of them to read is not known; convert them with "
            f"`vllm-dynin convert-codec`, and give the folder as --{name.replace('_', '-')}"
        )
    for file in files:
        file.unlink()
    say("\n".join(f"  {line}" for part in report for line in part.splitlines()))


def _check_image(folder: Path) -> str:
    codec = ImageCodec.from_pretrained(folder)
    return f"loads; {codec.num_codes} codes"


def _check_speech(folder: Path) -> str:
    codec = SpeechCodec.from_pretrained(folder)
    return f"loads; {codec.num_units} units, {len(codec.styles)} styles"


def _point_to(model: Path, name: str) -> None:
    """Have the checkpoint's config name the folder inside it."""
    path = model / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get(name) not in (None, name):
        values[name] = name
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
