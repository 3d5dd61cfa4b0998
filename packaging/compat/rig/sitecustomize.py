"""Python imports this file at its start; where DYNIN_RIG=1, vLLM's compiled parts are replaced.

When vLLM is first imported, and not before: most processes that a server starts (decoders of media,
compilers, trackers) never do, and importing it takes seconds.
"""

import importlib.machinery
import os
import sys
from importlib.abc import MetaPathFinder

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


class _WithRig(MetaPathFinder):
    """Finds `vllm` where the wheel without its compiled parts lies, and completes it."""

    def find_spec(self, name, path=None, target=None):
        if name != "vllm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module) -> None:
            import plain_ops  # noqa: F401 - registers operations, before vLLM looks for them

            run(module)
            import vllm_on_cpu  # noqa: F401

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("DYNIN_RIG") == "1":
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    sys.path.insert(0, os.environ["DYNIN_RIG_SITE"])
    sys.meta_path.insert(0, _WithRig())
