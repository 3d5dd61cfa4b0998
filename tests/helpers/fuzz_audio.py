"""A long run of damaged audio files, in worker processes, so that a crash or a hang is caught too.

    PYTHONPATH=tests python -m helpers.fuzz_audio --count 20000 --first 1000 --seconds 300

Each mutant is the one that the test suite would make from the same seed. FFmpeg runs inside the
worker here, not in a process per file as in serving; it runs out of memory where serving would
refuse. Prints the seeds that failed; exit status 1 if there were any.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import resource
import sys
import time

BATCH = 500
SECONDS_PER_MUTANT = 10.0
SECONDS_TO_START = 300.0
MEMORY = 6 * 2**30  # address space of a worker, torch's own mappings included


def run(first: int, count: int, queue: multiprocessing.Queue) -> None:
    """Read the mutants from number `first` on and put (seed, outcome, seconds) for each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    from helpers.audio_mutations import mutant, originals, outcome

    files = originals()
    queue.put((first, "started", 0.0))  # imports are done; from here on the clock runs
    for seed in range(first, first + count):
        name, mutations, data = mutant(files, seed)
        queue.put((seed, "started", 0.0))
        start = time.process_time()
        try:
            result = outcome(data)
        except MemoryError:
            result = "refused"  # as the worker's own cap would have it
        except BaseException as error:
            result = f"FAILED {name} {mutations}: {error!r}"
        queue.put((seed, result, time.process_time() - start))


def batch(context: multiprocessing.context.SpawnContext, first: int, count: int) -> list[tuple]:
    """Outcomes of one worker; a mutant that kills or stalls it is reported and skipped."""
    results: list[tuple] = []
    while count > 0:
        queue = context.Queue()
        worker = context.Process(target=run, args=(first, count, queue))
        worker.start()
        current, done, is_up = first, 0, False
        while done < count:
            try:
                seed, result, seconds = queue.get(
                    timeout=SECONDS_PER_MUTANT if is_up else SECONDS_TO_START
                )
            except Exception:
                why = "hung" if worker.is_alive() else f"died with {worker.exitcode}"
                results.append((current, f"FAILED: {why}", SECONDS_PER_MUTANT))
                done = current - first + 1
                break
            current, is_up = seed, True
            if result != "started":
                results.append((seed, result, seconds))
                done += 1
        worker.kill()
        worker.join()
        first, count = first + done, count - done
    return results


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=1_000, help="first seed")
    parser.add_argument("--seconds", type=float, default=600.0, help="stop after this long")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    deadline = time.monotonic() + options.seconds
    kinds: collections.Counter[str] = collections.Counter()
    slowest, failures = (0.0, -1), []
    for first in range(options.first, options.first + options.count, BATCH):
        left = min(BATCH, options.first + options.count - first)
        for seed, result, seconds in batch(context, first, left):
            kinds[result.split()[0].rstrip(":")] += 1
            slowest = max(slowest, (seconds, seed))
            if result.startswith("FAILED"):
                failures.append((seed, result))
                print(f"seed {seed}: {result}", flush=True)
        if time.monotonic() > deadline:
            break
    print(
        f"{sum(kinds.values())} mutants: {dict(kinds)}; "
        f"slowest {slowest[0]:.2f} s of processor time (seed {slowest[1]})"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
