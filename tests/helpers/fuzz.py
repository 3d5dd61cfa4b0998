"""Damaged media of one kind, thousands of them: `make fuzz MEDIUM=video ARGS="--files 2000"`.

PYTHONPATH=tests python -m helpers.fuzz MEDIUM [ARGUMENTS of the medium's own command]
"""

import runpy
import sys

MODULES = {
    "image": "helpers.fuzz_pictures",
    "audio": "helpers.fuzz_sounds",
    "video": "helpers.fuzz_videos",
}
"""Of each medium: the module of its command."""

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in MODULES:
        sys.exit(f"MEDIUM is one of {', '.join(MODULES)}")
    medium = sys.argv.pop(1)
    sys.argv[0] = f"fuzz {medium}"
    runpy.run_module(MODULES[medium], run_name="__main__", alter_sys=True)
