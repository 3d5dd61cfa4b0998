"""Small real data sets on disk, and a checkpoint folder with the codecs to tokenise them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.patch_threshold import PatchThresholdConfig
from vllm_dynin.processors.codecs.speech import TOY_SPEECH_DIRECTORY
from vllm_dynin.processors.media import IMAGE_CODEC, SPEECH_CODEC

SPEECH = Path(__file__).parents[1] / "data" / "speech"
"""Recordings of flite's voices, one a digit; `slt_seven.flac` says "seven"."""
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def codec_checkpoint(folder: Path) -> Path:
    """Config and codecs of a checkpoint, no weights: 16 codes an image, 4 a frame, 9 an edit."""
    folder.mkdir(parents=True)
    DyninOmniConfig(
        d_model=64,
        n_heads=2,
        n_layers=1,
        mlp_hidden_size=64,
        image_resolution=64,
        generation_resolution=64,
        edit_resolution=48,
        video_resolution=32,
        video_num_frames=3,
    ).save_pretrained(folder)
    codec = ImageCodec.from_config(PatchThresholdConfig(channels=3), seed=3)
    codec.save_pretrained(folder / IMAGE_CODEC)
    shutil.copytree(TOY_SPEECH_DIRECTORY, folder / SPEECH_CODEC)
    return folder


def digit(index: int) -> Image.Image:
    """A handwritten digit, 64 pixels a side."""
    grey = (255 - load_digits().images[index] / 16 * 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)


def photograph(index: int = 0) -> Image.Image:
    """A part of a photograph, 160 × 120."""
    photo = Image.fromarray(load_sample_images().images[index % 2])
    return photo.crop((11 * index, 7 * index, 160 + 11 * index, 120 + 7 * index))


def write_clip(path: Path, *, num_frames: int = 8, rate: int = 4) -> Path:
    """A pan over a photograph as an mp4 file of num_frames / rate seconds."""
    photo = Image.fromarray(load_sample_images().images[1])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for step in range(num_frames):
            view = photo.crop((12 * step, 0, 12 * step + 240, 160)).resize((96, 64))
            container.mux(stream.encode(av.VideoFrame.from_image(view)))
        container.mux(stream.encode(None))
    return path


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def write_media(folder: Path) -> Path:
    """Files that manifests refer to: digits, photographs, a clip, frames, spoken digits."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(10):
        digit(index).save(folder / f"digit{index}.png")
    for index in range(2):
        photograph(index).save(folder / f"photo{index}.jpg")
    write_clip(folder / "clip.mp4")
    (folder / "frames").mkdir()
    for index in range(4):
        photograph(index).save(folder / "frames" / f"{index:03d}.png")
    for word in DIGITS:
        shutil.copy(SPEECH / f"slt_{word}.flac", folder / f"{word}.flac")
    return folder


def every_direction() -> list[dict[str, Any]]:
    """A manifest in our own schema: rows of all seven directions, with the files above."""
    rows: list[dict[str, Any]] = [
        {"task": "t2t", "text": "Reverse: cat tree", "answer": "tree cat"},
        {"task": "mmu", "image": "photo0.jpg", "answer": "a Chinese palace"},
        {"task": "v2t", "video": "clip.mp4", "text": "What moves?", "answer": "the camera"},
        {"task": "v2t", "video": "frames", "answer": "four photographs"},
        {"task": "i2i", "image": "photo0.jpg", "text": "bloom", "target_image": "photo1.jpg"},
    ]
    for index, word in enumerate(DIGITS):
        rows.append({"task": "mmu", "image": f"digit{index}.png", "answer": word})
        rows.append({"task": "t2i", "text": f"draw {word}", "target_image": f"digit{index}.png"})
        rows.append({"task": "s2t", "speech": f"{word}.flac", "answer": word})
        rows.append({"task": "t2s", "text": word, "speech": f"{word}.flac"})
    return rows
