"""Milliseconds per second of audio of the published speech tokenizer, and the ratio to its bound.

    python benchmarks/bench_speech_codec.py --seconds 5

Production sizes, random weights, float32 on the CPU, with one and with two threads. The bound is
the FLOP count of the networks (counted by torch in this run) over the FLOP/s that this machine
reaches in a large float32 matrix product, run in turns with the networks. A ratio of 1 would be a
product's speed.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from vllm_dynin.processors.codecs.speech_to_units import SpeechToUnits
from vllm_dynin.processors.codecs.units_to_speech import UnitsToSpeech

UNITS_PER_SECOND = 20  # what a model emits after collapsing, about


def paired(work: Callable[[], object], repeats: int, size: int = 1536) -> tuple[float, float]:
    """FLOP/s of a matrix product and seconds of the work, taken in turns; the best of each."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    tasks = (lambda: a @ b, work)
    # One thread's processor time does not depend on what else the machine does.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = [math.inf, math.inf]
    for _ in range(repeats + 1):  # the first round warms up, but is as good as any
        for number, task in enumerate(tasks):
            start = clock()
            task()
            best[number] = min(best[number], clock() - start)
    return 2 * size**3 / best[0], best[1]


def flops_of(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of audio")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    torch.manual_seed(0)
    encoder, decoder = SpeechToUnits(), UnitsToSpeech()
    waveform = torch.randn(round(16_000 * options.seconds))
    units = torch.randint(0, 4096, (round(UNITS_PER_SECOND * options.seconds),))
    frames = math.ceil(options.seconds * 22_050 / 256)
    # Random weights give random durations: this makes them the same for every unit.
    innermost = decoder.dp.flows["0"]
    innermost.logs += 10
    innermost.m -= (math.log(frames / len(units)) - 0.05) * innermost.logs.exp()
    style, generator = decoder.style_vector(41), torch.Generator().manual_seed(0)
    latents, durations = decoder.latents(units, style, generator=generator)
    made = int(durations.sum()) * 256 / 22_050

    def stream() -> list[torch.Tensor]:
        with torch.inference_mode():
            return list(decoder.stream(units, style, 86, generator=generator))

    def generate() -> torch.Tensor:
        with torch.inference_mode():
            return decoder.dec(latents, style)

    work = {
        "S2U": (lambda: encoder([waveform]), options.seconds),
        "U2S, in one piece": (lambda: decoder(units, style, generator=generator), made),
        "U2S, in pieces of 1 s": (stream, made),
        "  generator alone": (generate, made),
        "  all before it": (lambda: decoder.latents(units, style, generator=generator), made),
    }
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(f"\n{threads} thread(s)")
        print(
            "| part | GFLOP per s of audio | machine, GFLOP/s | bound, ms | measured, ms | ratio |"
        )
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for name, (run, seconds) in work.items():
            count = flops_of(run) / seconds
            speed, taken = paired(run, options.repeats)
            bound, taken = count / speed, taken / seconds
            print(
                f"| {name} | {count / 1e9:.1f} | {speed / 1e9:.0f} | {1e3 * bound:.0f} "
                f"| {1e3 * taken:.0f} | {taken / bound:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
