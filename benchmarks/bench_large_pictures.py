"""Photographs of phones' main cameras: memory and processor time of the worker that opens them.

    python benchmarks/bench_large_pictures.py [--kinds jpeg png webp …] [--megapixels 50 200]

The pictures are enlarged noise, written here (which takes most of the time, and 3 GB of memory).
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vllm_dynin.processors.codecs.image_io import open_image
from vllm_dynin.processors.codecs.limits import MediaError

SIZES = {50: (8160, 6144), 200: (16320, 12240)}
KINDS: dict[str, tuple[str, str, dict[str, object]]] = {
    "jpeg": ("RGB", "JPEG", {"quality": 85}),
    "jpeg progressive 4:2:0": ("RGB", "JPEG", {"quality": 85, "progressive": True}),
    "jpeg progressive 4:4:4": (
        "RGB",
        "JPEG",
        {"quality": 90, "progressive": True, "subsampling": 0},
    ),
    "jpeg cmyk": ("CMYK", "JPEG", {"quality": 85}),
    "png": ("RGB", "PNG", {"compress_level": 1}),
    "png rgba": ("RGBA", "PNG", {"compress_level": 1}),
    "png grey": ("L", "PNG", {"compress_level": 1}),
    "png 16 bits": ("I;16", "PNG", {"compress_level": 1}),
    "webp": ("RGB", "WEBP", {"quality": 70, "method": 0}),
    "avif": ("RGB", "AVIF", {"quality": 50, "speed": 10}),
    "tiff": ("RGB", "TIFF", {}),
    "tiff lzw": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "bmp": ("RGB", "BMP", {}),
    "gif": ("L", "GIF", {}),
}


def write(path: Path, megapixels: int, kind: str) -> None:
    """Make a file."""
    mode, image_format, options = KINDS[kind]
    width, height = SIZES[megapixels]
    noise = Image.effect_noise((width // 8, height // 8), 40)
    image = noise.resize((width, height), Image.Resampling.NEAREST)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    elif mode == "RGBA":
        alpha, image = image, image.convert("RGB")
        image.putalpha(alpha)
    image.convert(mode).save(path, image_format, **options)


def read(path: Path) -> None:
    """Open it, in a process as small as possible: a child's peak is at least its parent's."""
    try:
        told = "{}×{}".format(*open_image(path).size)
    except MediaError as error:
        told = f"refused: {error}"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    print(
        f"{told}; worker {used.ru_maxrss >> 10} MiB, {seconds:.1f} s of processor time", flush=True
    )


def alone(work: Callable[..., None], *arguments: object) -> None:
    """Run in a fresh process."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--megapixels", nargs="+", type=int, default=list(SIZES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        for megapixels in options.megapixels:
            for kind in options.kinds:
                path.unlink(missing_ok=True)
                alone(write, path, megapixels, kind)
                if path.exists():
                    size = path.stat().st_size / 1e6
                    print(f"{megapixels} Mpixel, {kind}, {size:.1f} MB: ", end="", flush=True)
                    alone(read, path)


if __name__ == "__main__":
    main()
