"""The Python of vLLM's CUDA wheel on a machine without a GPU. Imported with it (sitecustomize.py).

Its V2 runner, scheduler, warm-up and HTTP server run as they are; its compiled operations are those
of `plain_ops`, and its kernels run in Triton's interpreter. `rig.sh` makes the environment.
"""

from __future__ import annotations

import os
from pathlib import Path

import vllm.platforms as platforms
from vllm.platforms.cpu import CpuPlatform
from vllm.utils import cpu_resource_utils

platforms._current_platform = CpuPlatform()

# Each data-parallel engine wants a memory node of its own; they share what the machine has.
_visible_nodes = cpu_resource_utils.get_visible_memory_node
cpu_resource_utils.get_visible_memory_node = lambda assigned_node_ids=None: _visible_nodes()

if os.environ.get("TRITON_ALL") == "1":
    # No kernel is replaced: each runs as written, in the interpreter, as it would on a GPU.
    from vllm_dynin import compat

    compat.replace_runner_kernels = list  # type: ignore[assignment]
assert Path(platforms.__file__).is_relative_to(os.environ["DYNIN_RIG_SITE"])
