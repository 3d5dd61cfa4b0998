"""Serve masked-diffusion omnimodal models (Dynin-Omni, MMaDA, LLaDA) on stock vLLM."""

from __future__ import annotations

from typing import Any

_TEXT = "vllm_dynin.model_executor.masked_diffusion:MaskedDiffusionLM"
_OMNI = "vllm_dynin.model_executor.dynin_omni:OmniMaskedDiffusionLM"
ARCHITECTURES = {
    "DyninOmniModelLM": _OMNI,
    "DyninOmniForConditionalGeneration": _OMNI,
    "MMadaModelLM": _OMNI,
    "LLaDAModelLM": _TEXT,
}
"""Every architecture name a checkpoint of the family may carry, and the class that serves it."""

_REQUESTS = (
    "Chat",
    "EditImage",
    "FillSpeech",
    "FillText",
    "Gap",
    "ImageToText",
    "Inpaint",
    "MixedAnswer",
    "SpeechToSpeech",
    "SpeechToText",
    "TextToImage",
    "TextToSpeech",
    "TextToText",
    "VideoToSpeech",
    "VideoToText",
)
_EXPORTS = {
    "generate": "vllm_dynin.api",
    "Result": "vllm_dynin.api",
    "DenoiseParams": "vllm_dynin.sampling.params",
    "Sound": "vllm_dynin.codec_runner",
    "Trajectory": "vllm_dynin.trajectory",
    **dict.fromkeys(_REQUESTS, "vllm_dynin.requests"),
}
"""Names for Python users and where they are. vLLM imports this package in each of its processes, so
they are loaded when they are asked for."""


def __getattr__(name: str) -> Any:
    """Load a name for Python users."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])


def register() -> None:
    """Tell vLLM about the family. Called by vLLM in each of its processes; idempotent.

    Raises:
        RuntimeError: the installed vLLM is not supported.
    """
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY
    from vllm.platforms import current_platform
    from vllm.reasoning import ReasoningParserManager

    from vllm_dynin import compat
    from vllm_dynin.config import CONFIG_CLASSES
    from vllm_dynin.entrypoints.media_connector import GuardedMediaConnector
    from vllm_dynin.model_executor.engine_config import EngineConfig
    from vllm_dynin.model_executor.unused_memory import cap_kv_cache

    compat.check_vllm_version()
    compat.show_logs()
    if current_platform.is_cpu():
        compat.prepare_cpu()
    for config_class in CONFIG_CLASSES:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for architecture, model_class in ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, model_class)
        MODELS_CONFIG_MAP[architecture] = EngineConfig
    ReasoningParserManager.register_lazy_module(
        "dynin", "vllm_dynin.entrypoints.reasoning", "DyninReasoningParser"
    )
    compat.hook_admission(_admission)
    compat.keep_what_was_stated()
    cap_kv_cache()
    MEDIA_CONNECTOR_REGISTRY.register(compat.MEDIA_CONNECTOR)(GuardedMediaConnector)


def _admission() -> Any:
    from vllm_dynin.model_executor import admission

    return admission
