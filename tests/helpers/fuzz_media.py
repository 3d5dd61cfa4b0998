"""Feed seeded mutations of real media files to the readers.

    PYTHONPATH=tests python -m helpers.fuzz_media image --files 500
    PYTHONPATH=tests python -m helpers.fuzz_media video --files 20000 --seed 7

Every file is opened in a child process of its own: the result must be an image (frames) within
the limits, or MediaError. Any other exception, a crash of the image reader, a hang or a memory peak
over the bound is a failure; the file is kept. A crash inside FFmpeg is contained by design (serving
decodes videos in a process of their own), so it is counted and printed and does not fail the run.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vllm_dynin.processors.codecs.image_decode import decode_image
from vllm_dynin.processors.codecs.image_io import resize_and_crop
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits
from vllm_dynin.processors.codecs.video_worker import decode_frames

# Small, so that a mutation which raises a size meets a limit and not the machine's patience.
LIMITS = MediaLimits(
    max_pixels=4_000_000,
    max_source_pixels=16_000_000,
    max_frame_pixels=1_000_000,
    max_frames=500,
)
MAX_SECONDS = 20.0
MAX_GROWTH = 200 * 2**20  # bytes over what a child holds that reads nothing
MAX_MEMORY = 2**30  # address space of a child, as the workers cap it

READ, REFUSED, FAILED = 0, 3, 1


def picture(height: int, width: int, seed: int) -> Image.Image:
    """Smooth colours with noise on them, which every format codes non-trivially."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [4 * x, 4 * y, 2 * (x + y)]
    array = np.stack(planes, -1) + generator.integers(0, 20, (height, width, 3))
    return Image.fromarray((array % 256).astype(np.uint8))


def image_seeds() -> list[bytes]:
    """One file of each kind the image reader supports."""
    image = picture(40, 56, 0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "description" * 5
    alpha = image.convert("RGBA")
    alpha.putalpha(picture(40, 56, 1).convert("L"))
    grey16 = Image.fromarray((np.arange(40 * 56, dtype=np.uint16) * 29).reshape(40, 56))
    frames = {"save_all": True, "append_images": [picture(40, 56, s) for s in (1, 2)]}
    variants: list[tuple[Image.Image, str, dict[str, object]]] = [
        (image, "PNG", {}),
        (image.quantize(16), "PNG", {"transparency": 3}),
        (alpha, "PNG", {}),
        (grey16, "PNG", {}),
        (image.convert("1"), "PNG", {}),
        (image, "PNG", frames),
        (image, "JPEG", {"exif": exif}),
        (image, "JPEG", {"progressive": True}),
        (image.convert("CMYK"), "JPEG", {}),
        (image, "WEBP", {"exif": exif}),
        (alpha, "WEBP", {"lossless": True}),
        (image, "WEBP", frames),
        (image, "GIF", frames),
        (image, "BMP", {}),
        (image.quantize(16), "BMP", {}),
        (image, "TIFF", {}),
        (image, "TIFF", {"compression": "tiff_lzw"}),
        (image, "TIFF", {"compression": "jpeg"}),
        (grey16, "TIFF", {"compression": "tiff_deflate"}),
        (image, "PPM", {}),
        (image, "AVIF", {}),
    ]
    seeds = []
    for variant, name, options in variants:
        if name in Image.SAVE:
            stream = io.BytesIO()
            variant.save(stream, name, **options)
            seeds.append(stream.getvalue())
    return seeds


def video_seeds() -> list[bytes]:
    """One file of each container and several codecs."""
    kinds = [
        ("mp4", "libx264", "yuv420p"),
        ("mp4", "mpeg4", "yuv420p"),
        ("mov", "mjpeg", "yuvj420p"),
        ("matroska", "libx264", "yuv420p"),
        ("webm", "libvpx", "yuv420p"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("avi", "mjpeg", "yuvj420p"),
        ("avi", "mpeg4", "yuv420p"),
        ("gif", "gif", "rgb8"),
    ]
    seeds = []
    for container_format, codec, pixel_format in kinds:
        stream = io.BytesIO()
        with av.open(stream, "w", format=container_format) as container:
            track = container.add_stream(codec, rate=25)
            track.width, track.height, track.pix_fmt = 56, 40, pixel_format
            for i in range(6):
                frame = av.VideoFrame.from_image(picture(40, 56, i))
                container.mux(track.encode(frame))
            container.mux(track.encode())
        seeds.append(stream.getvalue())
    return seeds


def mutate(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """One to four random changes; the header is hit as often as the rest."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        if not result:
            break
        near = chance.random() < 0.5
        at = chance.randrange(min(len(result), 100) if near else len(result))
        length = chance.choice((1, 2, 4, 8, 64, 512))
        kind = chance.randrange(8)
        if kind == 0:  # flip bits
            for offset in range(at, min(at + length, len(result))):
                result[offset] ^= 1 << chance.randrange(8)
        elif kind == 1:  # random bytes
            result[at : at + length] = chance.randbytes(length)
        elif kind == 2:  # numbers at the edges of their range
            value = chance.choice((0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1))
            order = chance.choice(("big", "little"))
            result[at : at + 4] = value.to_bytes(4, order)
        elif kind == 3:  # truncate
            del result[at:]
        elif kind == 4:  # remove
            del result[at : at + length]
        elif kind == 5:  # repeat
            result[at:at] = result[at : at + length] * chance.choice((1, 2, 50))
        elif kind == 6:  # splice with another file
            other = chance.choice(others)
            result[at:] = other[chance.randrange(len(other)) :]
        else:  # zeros
            result[at : at + length] = bytes(length)
    return bytes(result)


def read_image(data: bytes) -> None:
    """What the image worker does, memory cap included."""
    _limit_memory()
    image = decode_image(io.BytesIO(data), LIMITS)
    if image.mode != "RGB" or image.width * image.height > LIMITS.max_pixels:
        raise AssertionError(f"got a {image.mode} image of {image.size}")
    resize_and_crop(image, 64, 64)


def read_video(data: bytes) -> None:
    """What the video worker does, memory cap included."""
    _limit_memory()
    frames = decode_frames(io.BytesIO(data), 2, (32, 32), LIMITS)
    if [(frame.mode, frame.size) for frame in frames] != [("RGB", (32, 32))] * 2:
        raise AssertionError(f"got {frames}")


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as statm:
        ceiling = int(statm.read().split()[0]) * resource.getpagesize() + MAX_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))


def run_child(read: Callable[[bytes], None], data: bytes) -> tuple[int, float, int]:
    """Read in a forked child; its wait status, seconds, and peak memory in bytes."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        status = FAILED
        try:
            signal.alarm(int(MAX_SECONDS))
            warnings.simplefilter("ignore")  # Pillow's, about each damaged tag
            read(data)
            status = READ
        except (MediaError, MemoryError):  # the worker turns the latter into the former
            status = REFUSED
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status, usage = os.wait4(child, 0)
    return status, time.monotonic() - start, usage.ru_maxrss * 1024


def fuzz(kind: str, files: int, seed: int) -> int:
    """Run; print a summary; the number of failures."""
    seeds, read = (image_seeds(), read_image) if kind == "image" else (video_seeds(), read_video)
    for data in seeds:  # the seeds themselves are all right, or the run shows nothing
        if run_child(read, data)[0] != READ:
            raise RuntimeError(f"a seed file of {len(data)} bytes cannot be read")
    baseline = run_child(lambda data: None, b"")[2]
    outcomes: Counter[str] = Counter()
    slowest, largest, failures = 0.0, 0, 0
    for number in range(files):
        chance = random.Random(f"{kind} {seed} {number}")
        data = mutate(chance.choice(seeds), seeds, chance)
        status, seconds, peak = run_child(read, data)
        slowest, largest = max(slowest, seconds), max(largest, peak)
        growth = peak - baseline
        code = os.waitstatus_to_exitcode(status)
        is_crash = code < 0 and code != -signal.SIGALRM
        outcome = {READ: "read", REFUSED: "refused"}.get(code, "crashed" if is_crash else "failed")
        limit = MAX_GROWTH if kind == "image" else MAX_MEMORY
        is_bad = outcome == "failed" or (is_crash and kind == "image") or growth > limit
        outcomes[outcome] += 1
        if is_bad or is_crash:
            path = Path(tempfile.gettempdir()) / f"fuzz_{kind}_{seed}_{number}"
            path.write_bytes(data)
            print(f"file {number}: status {code}, {seconds:.1f} s, {growth:,} bytes; {path}")
        failures += is_bad
    print(
        f"{files} {kind} files, seed {seed}: {dict(outcomes)}, {failures} failures; slowest "
        f"{slowest:.2f} s, largest peak {(largest - baseline) / 2**20:.0f} MiB over an idle child"
    )
    return failures


def main() -> int:
    """Command line; the exit status is 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="fuzz_media", description="Fuzz the media readers.")
    parser.add_argument("kind", choices=("image", "video"))
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    return int(fuzz(options.kind, options.files, options.seed) > 0)


if __name__ == "__main__":
    sys.exit(main())
