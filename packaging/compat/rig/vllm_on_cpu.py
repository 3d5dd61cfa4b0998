"""The Python of vLLM's CUDA wheel on a machine without a GPU. Imported first (sitecustomize.py).

Its V2 runner, scheduler, warm-up and HTTP server run as they are; its compiled operations are those
of `plain_ops`, and its kernels run in Triton's interpreter. `rig.sh` makes the environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

for name, value in {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_SIM_MULTI_NUMA": "1",  # else each data-parallel engine wants a memory node of its own
}.items():
    os.environ.setdefault(name, value)
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TRITON_INTERPRET"] = "1"
# The wheel without its compiled parts.
sys.path.insert(0, os.environ["DYNIN_RIG_SITE"])

import plain_ops  # noqa: E402, F401
import vllm.platforms as platforms  # noqa: E402
from vllm.platforms.cpu import CpuPlatform  # noqa: E402

platforms._current_platform = CpuPlatform()

if os.environ.get("TRITON_ALL") == "1":
    # No kernel is replaced: each runs as written, in the interpreter, as it would on a GPU.
    from vllm_dynin import compat

    compat.replace_runner_kernels = list  # type: ignore[assignment]
assert Path(platforms.__file__).is_relative_to(os.environ["DYNIN_RIG_SITE"])
