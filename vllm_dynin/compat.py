"""Every patch of vLLM and every branch on its version, each with the condition for removing it."""

from __future__ import annotations

import importlib
import inspect
import logging

from vllm.triton_utils.dispatcher import KernelOverride, register_kernels

from vllm_dynin.kernels.runner_cpu import OVERRIDES

logger = logging.getLogger(__name__)


def replace_runner_kernels() -> list[str]:
    """Let vLLM's own override registry run the runner's bookkeeping kernels in NumPy.

    For machines without a GPU only, and after TRITON_INTERPRET is set, because this imports the
    runner's kernels. A kernel that another version of vLLM lacks, or gives other arguments, keeps
    running in Triton's interpreter, which is right and slow; the log says so. Calling this again
    changes nothing.

    SCAFFOLDING: remove when vLLM brings CPU versions of these kernels.

    Returns:
        The names of the kernels that are replaced now.
    """
    wanted = {}
    replaced = []
    for name, replacement in OVERRIDES.items():
        module_name, _, attribute = name.rpartition(".")
        try:
            kernel = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            logger.warning("%s stays in Triton's interpreter, which is slow: %s", name, error)
            continue
        if isinstance(kernel, KernelOverride):
            if kernel.func is replacement:
                replaced.append(name)
            else:  # a platform plugin was first; its version is as good as ours
                logger.info("%s is already replaced by another plugin", name)
            continue
        ours = list(inspect.signature(replacement).parameters)
        # Launch options such as num_warps are passed like arguments and are none of the kernel's.
        theirs = [*kernel.arg_names, *(option for option in ("num_warps",) if option in ours)]
        if ours != theirs:
            logger.warning(
                "%s stays in Triton's interpreter, which is slow: its arguments are %s, and the "
                "replacement was written for %s",
                name,
                theirs,
                ours,
            )
            continue
        wanted[name] = replacement
    register_kernels(wanted)
    return replaced + list(wanted)
