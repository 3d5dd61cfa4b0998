"""Looking into an engine that runs in the test's own process."""

from __future__ import annotations

from pathlib import Path

from vllm import LLM

from vllm_dynin.model_executor.dynin_omni import OmniMaskedDiffusionLM


def served_model(llm: LLM) -> OmniMaskedDiffusionLM:
    """The model vLLM has loaded."""
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    return executor.driver_worker.worker.model_runner.model


def reset_peak_memory() -> int:
    """Forget the peak; bytes resident now. Linux only, and for this process only."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory() -> int:
    """Most bytes resident since the last reset."""
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field} in /proc/self/status")
