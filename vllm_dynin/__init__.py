"""Serve masked-diffusion omnimodal models (Dynin-Omni, MMaDA, LLaDA) on stock vLLM."""

ARCHITECTURES = (
    "DyninOmniModelLM",
    "DyninOmniForConditionalGeneration",
    "MMadaModelLM",
    "LLaDAModelLM",
)
"""Every architecture name a checkpoint of the family may carry."""


def register() -> None:
    """Tell vLLM about the family. Called by vLLM in each of its processes; idempotent.

    Raises:
        RuntimeError: the installed vLLM is not supported.
    """
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.platforms import current_platform

    from vllm_dynin import compat
    from vllm_dynin.config import CONFIG_CLASSES
    from vllm_dynin.model_executor.engine_config import EngineConfig

    compat.check_vllm_version()
    if current_platform.is_cpu():
        compat.prepare_cpu()
    for config_class in CONFIG_CLASSES:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(
            architecture, "vllm_dynin.model_executor.dynin_omni:DyninOmniForMaskedDiffusion"
        )
        MODELS_CONFIG_MAP[architecture] = EngineConfig
    compat.hook_admission()
