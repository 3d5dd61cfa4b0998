"""Python runs this at its start, where the folder is on its path: workers say what they needed.

A media worker appends its name and the most memory it had (kB) to the file that
`WORKER_PEAKS_FILE` names; one that was ended or crashed leaves its name alone. Its parent cannot
find this out: `ru_maxrss` of a child begins with what the parent had.
"""

import atexit
import os
import sys


def _watch() -> None:
    target = os.environ.get("WORKER_PEAKS_FILE")
    arguments = [part for part in sys.orig_argv if part.endswith("_worker")]
    if not target or not arguments:
        return
    name, number = arguments[0].rpartition(".")[2], os.getpid()

    def write(line: str) -> None:
        # Opened each time and in one write, because many workers share the file.
        descriptor = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def tell() -> None:
        with open("/proc/self/status", encoding="ascii") as status:
            peak = next(line for line in status if line.startswith("VmHWM")).split()[1]
        write(f"end {name} {number} {peak}\n")

    write(f"start {name} {number} 0\n")
    atexit.register(tell)


_watch()
