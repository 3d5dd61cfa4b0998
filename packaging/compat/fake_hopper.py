"""vLLM's CUDA platform as an H100, an H200, a B200 or an L40S has it, on a machine without a GPU.

    import fake_hopper; fake_hopper.pretend("H200")

before anything else of vLLM, with its CUDA wheel and a CUDA build of torch. For imports, engine
configurations and model constructors: nothing can be launched. `hopper.sh` runs what uses it.
"""

from __future__ import annotations

import os
from typing import Any

GPUS = {
    # name: compute capability, GiB of memory, multiprocessors
    "H100": ((9, 0), 80, 132),
    "H200": ((9, 0), 141, 132),
    "B200": ((10, 0), 180, 148),
    "L40S": ((8, 9), 48, 142),
}


def pretend(name: str) -> None:
    """Make a GPU of `GPUS` the platform of this process.

    Raises:
        KeyError: it is none of them.
    """
    capability, memory, units = GPUS[name]
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # vLLM then leaves Triton on without a driver
    import torch
    import vllm.platforms as platforms
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    class Pretended(CudaPlatformBase):
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(*capability)

        @classmethod
        def has_device_capability(cls, wanted: Any, device_id: int = 0) -> bool:
            number = wanted if isinstance(wanted, int) else wanted[0] * 10 + wanted[1]
            return number <= capability[0] * 10 + capability[1]

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return f"NVIDIA {name}"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return memory << 30

        @classmethod
        def is_fully_connected(cls, physical_device_ids: list[int]) -> bool:
            return False

        @classmethod
        def device_count(cls) -> int:
            return 8

        @classmethod
        def num_compute_units(cls, device_id: int = 0) -> int:
            return units

    torch.cuda.get_device_capability = lambda *arguments: capability
    torch.accelerator.device_count = lambda: 8
    torch.cuda.device_count = lambda: 8
    platforms._current_platform = Pretended()
