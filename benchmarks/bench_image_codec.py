"""Image codec at production size with random weights, against the machine's own arithmetic.

    python benchmarks/bench_image_codec.py --json out.json

For one and for two threads: seconds to encode and decode 336×336 and 512×512 pixels and to encode
a video of five 336×336 frames. `bound` is the time over FLOP ÷ rate: FLOP is counted by PyTorch on
the graph, and rate is the best that a matrix product or a 3×3 convolution (256 → 256 channels at
128×128) reaches just before the row, by the same clock. 1.0 would be a codec that only convolves,
at that speed.

One thread is timed by processor time, which other work on the machine hardly moves; several threads
by wall time, which is only meaningful on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from vllm_dynin.processors.codecs.group_norm import GroupNorm
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.magvit import Magvit, MagvitConfig


def seconds(work: Callable[[], object], repeats: int) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = float("inf")
    for _ in range(repeats):
        start = clock()
        work()
        best = min(best, clock() - start)
    return best


def flop(side: int) -> tuple[int, int]:
    """FLOP of encoding and of decoding side × side pixels, counted on tensors without data."""
    counts = []
    with torch.device("meta"), torch.no_grad():
        network = Magvit(MagvitConfig())
        inputs = (torch.zeros(1, 3, side, side), torch.zeros(1, 13, side // 16, side // 16))
        for half, values in zip((network.encoder, network.decoder), inputs, strict=True):
            with FlopCounterMode(display=False) as counter:
                half(values)
            counts.append(counter.get_total_flops())
    return counts[0], counts[1]


@torch.inference_mode()
def machine_rate() -> dict[str, float]:
    """FLOP per second of a matrix product and of a convolution, both layouts, float32."""
    matrix = torch.randn(1536, 1536)
    x, w = torch.randn(1, 256, 128, 128), torch.randn(256, 256, 3, 3)
    x_last = x.contiguous(memory_format=torch.channels_last)
    w_last = w.contiguous(memory_format=torch.channels_last)
    convolution = 2 * 9 * 256 * 256 * 128 * 128
    return {
        "matmul": 2 * 1536**3 / seconds(lambda: matrix @ matrix, 4),
        "conv": convolution / seconds(lambda: F.conv2d(x, w, padding=1), 4),
        "conv_channels_last": convolution / seconds(lambda: F.conv2d(x_last, w_last, padding=1), 4),
    }


def measure(codec: ImageCodec, threads: int, repeats: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    rows: list[dict[str, object]] = []

    def add(name: str, work: Callable[[], object], count: float) -> None:
        rates = machine_rate()
        taken = seconds(work, repeats)
        bound = taken / (count / max(rates.values()))
        rows.append({"what": name, "seconds": taken, "flop": count, "rates": rates, "bound": bound})
        print(
            f"{threads} thread(s)  {name:<26} {taken * 1e3:7.0f} ms  {count / 1e9:5.0f} GFLOP  "
            f"{bound:5.2f} × bound at {max(rates.values()) / 1e9:.0f} GFLOP/s",
            flush=True,
        )

    generator = np.random.default_rng(0)
    for side in (336, 512):
        encode_flop, decode_flop = flop(side)
        array = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        image = Image.fromarray(array)
        codes = codec.encode([image])  # also the warm-up
        add(f"encode {side}", lambda image=image: codec.encode([image]), encode_flop)
        add(
            f"decode {side}",
            lambda codes=codes, side=side: codec.decode(codes, side, side),
            decode_flop,
        )
        if side == 336:
            frames = [image] * 5
            add(
                "encode 5-frame video 336",
                lambda frames=frames: codec.encode(frames),
                5 * encode_flop,
            )
    return {"threads": threads, "rows": rows}


def layouts(repeats: int) -> dict[str, float]:
    """Encoding 336 with channels first and last by turns: what ImageCodec's choice is worth."""
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {"first": [], "last": []}
    pixels = torch.rand(1, 3, 336, 336) * 2 - 1
    encoder = ImageCodec.from_config(MagvitConfig()).network.encoder
    with torch.inference_mode():
        for _ in range(repeats + 1):
            for name, layout in (
                ("first", torch.contiguous_format),
                ("last", torch.channels_last),
            ):
                encoder.to(memory_format=layout)
                x = pixels.contiguous(memory_format=layout)
                taken[name].append(seconds(lambda x=x: encoder(x), 1))
    best = {name: min(times[1:]) for name, times in taken.items()}
    print(f"encode 336, 1 thread: channels first {best['first']:.2f} s, last {best['last']:.2f} s")
    return best


def norms(repeats: int) -> dict[str, float]:
    """Encoding 336 with PyTorch's group norm and with ours by turns: what being right costs."""
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {"PyTorch's": [], "ours": []}
    codec = ImageCodec.from_config(MagvitConfig())
    pixels = torch.rand(1, 3, 336, 336) * 2 - 1
    ours = GroupNorm._channels_last

    def theirs(norm: GroupNorm, x: torch.Tensor, swish: bool) -> torch.Tensor:
        y = torch.nn.GroupNorm.forward(norm, x)
        return F.silu(y, inplace=True) if swish else y

    try:
        for _ in range(repeats + 1):
            for name, kernel in (("PyTorch's", theirs), ("ours", ours)):
                GroupNorm._channels_last = kernel  # type: ignore[method-assign]
                taken[name].append(seconds(lambda: codec.latents(pixels), 1))
    finally:
        GroupNorm._channels_last = ours  # type: ignore[method-assign]
    best = {name: min(times[1:]) for name, times in taken.items()}
    told = ", ".join(f"{name} {value:.2f} s" for name, value in best.items())
    print(f"encode 336, 1 thread, group norm: {told}")
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json")
    options = parser.parse_args()
    codec = ImageCodec.from_config(MagvitConfig())
    result = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "runs": [measure(codec, threads, options.repeats) for threads in options.threads],
        "layouts": layouts(options.repeats),
        "norms": norms(options.repeats),
    }
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
