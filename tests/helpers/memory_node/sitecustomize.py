"""Makes a machine's memory nodes look like another size, in this process and in those it starts.

For a child process: this folder at the head of PYTHONPATH, and LOOKS_LIKE_GIB set. Only the file
that vLLM reads is another one; the memory there is stays what it is.
"""

from __future__ import annotations

import builtins
import io
import os
import re
from typing import Any

VARIABLE = "LOOKS_LIKE_GIB"
MEMINFO = re.compile(r"/sys/devices/system/node/node\d+/meminfo")
_open = builtins.open


def meminfo(gib: float) -> str:
    """What the kernel would write on a machine that has a tenth of its memory in use."""
    total = int(gib * (1 << 20))
    sizes = {
        "MemTotal": total,
        "MemFree": total // 2,
        "Active(file)": total // 5,
        "Inactive(file)": total // 5,
        "SReclaimable": 0,
    }
    return "".join(f"Node 0 {name}: {size} kB\n" for name, size in sizes.items())


def faked(path: Any, *args: Any, **kwargs: Any) -> Any:
    """`open`, but for that file."""
    size = os.environ.get(VARIABLE)
    if size and isinstance(path, str) and MEMINFO.fullmatch(path):
        return io.StringIO(meminfo(float(size)))
    return _open(path, *args, **kwargs)


if os.environ.get(VARIABLE):
    builtins.open = faked  # type: ignore[assignment]
