"""What the engine must be configured as, refused at start-up where it cannot be.

vLLM calls these hooks for our architectures while it builds its configuration.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from vllm_dynin import checkpoint, compat
from vllm_dynin.model_executor.cpu_memory import settle_kv_memory

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

logger = logging.getLogger(__name__)

SCHEDULER = "vllm_dynin.model_executor.scheduler.MaskedDiffusionScheduler"
WORKER_EXTENSION = "vllm_dynin.model_executor.worker_extension.MediaWorkerExtension"
NON_CAUSAL_BACKENDS = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN", "FLEX_ATTENTION")
"""Attention backends with a paged KV cache and `causal=False`."""


class EngineConfig(VerifyAndUpdateConfig):
    """Configuration hooks of every architecture of the family."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """What a checkpoint says: rows of its token table, frames that are taken of a video.

        The rows come from the weights, not from `config.json`.
        """
        _set_video_frames(model_config)
        compat.share_no_media(model_config)
        try:
            shapes = checkpoint.tensor_shapes(model_config.model)
        except ValueError:  # not a local folder; the loader checks the rows (weights.py)
            return
        rows = checkpoint.table_rows(shapes)
        for config in (model_config.hf_config, model_config.hf_text_config):
            config.vocab_size = rows
        model_config.model_arch_config.vocab_size = rows

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Set what masked diffusion needs and refuse what it cannot work with.

        Raises:
            ValueError: a flag is incompatible; the message says which and what to do.
        """
        from vllm.config.diffusion import DiffusionConfig

        _refuse(vllm_config)
        compat.lower_request_limits()
        compat.guard_every_path()
        model, scheduler = vllm_config.model_config, vllm_config.scheduler_config
        if vllm_config.diffusion_config is None:
            vllm_config.diffusion_config = DiffusionConfig(canvas_length=model.max_model_len)
        scheduler.scheduler_cls = SCHEDULER
        parallel = vllm_config.parallel_config
        parallel.worker_extension_cls = parallel.worker_extension_cls or WORKER_EXTENSION
        scheduler.async_scheduling = False  # every step starts from a rewound token count
        scheduler.enable_chunked_prefill = False  # a chunk cannot see what comes behind it
        vllm_config.cache_config.enable_prefix_caching = False  # nor can a cached prefix
        if scheduler.max_num_batched_tokens < model.max_model_len:
            logger.warning(
                "max_num_batched_tokens raised from %d to %d: a denoising step holds a whole "
                "request, so the budget must fit max_model_len",
                scheduler.max_num_batched_tokens,
                model.max_model_len,
            )
            scheduler.max_num_batched_tokens = model.max_model_len
        if current_platform.is_cpu():
            settle_kv_memory(vllm_config)


def _set_video_frames(model_config: ModelConfig) -> None:
    """Let the server's reader of videos know what will be asked of it (media_io/video.py).

    It decodes in threads of its own; what it has not taken is taken again where prompts are put
    together, one after the other.
    """
    media = model_config.multimodal_config
    if media is not None:
        config = model_config.hf_config
        video = media.media_io_kwargs.setdefault("video", {})
        video.setdefault("num_frames", config.video_num_frames)
        video.setdefault("resolution", config.video_resolution)


def _refuse(vllm_config: VllmConfig) -> None:
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    scheduler, backend = vllm_config.scheduler_config, vllm_config.attention_config.backend
    problems = {
        "the V1 model runner (VLLM_USE_V2_MODEL_RUNNER=0, or no Triton) has no hooks for masked "
        "diffusion; unset it, and on a CPU install with `make venv`": (
            not vllm_config.use_v2_model_runner
        ),
        "pipeline parallelism is not implemented; use --tensor-parallel-size": (
            parallel.pipeline_parallel_size > 1
        ),
        "context parallelism is not implemented; use --tensor-parallel-size": (
            parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1
        ),
        "--enable-dbo splits a batch in two, which guidance does not survive; leave it out": (
            parallel.use_ubatching
        ),
        "batch-sharded sampling is not implemented; leave it out": (
            parallel.enable_batch_sharded_sampling
        ),
        "speculative decoding has no meaning without a reading order; leave "
        "--speculative-config out": vllm_config.speculative_config is not None,
        "LoRA adapters are not implemented; merge them into the checkpoint": (
            vllm_config.lora_config is not None
        ),
        "KV transfer is not implemented, because every step rewrites the KV cache; leave "
        "--kv-transfer-config out": vllm_config.kv_transfer_config is not None,
        "--enable-prompt-embeds is not supported: every modality is token ids": (
            model.enable_prompt_embeds
        ),
        "watermarks are put into tokens that are sampled in reading order; leave "
        "--watermark-config out": vllm_config.watermark_config is not None,
        "custom logits processors are not supported; leave --logits-processors out": bool(
            model.logits_processors
        ),
        f"--logprobs-mode {model.logprobs_mode} is not implemented; use raw_logprobs": (
            model.logprobs_mode != "raw_logprobs"
        ),
        "--long-prefill-token-threshold would cut a denoising step; leave it at 0": (
            scheduler.long_prefill_token_threshold > 0
        ),
        f"attention backend {getattr(backend, 'name', backend)} cannot attend in both directions; "
        f"use one of {', '.join(NON_CAUSAL_BACKENDS)}": (
            backend is not None and backend.name not in NON_CAUSAL_BACKENDS
        ),
    }
    found = [message for message, is_wrong in problems.items() if is_wrong]
    if found:
        raise ValueError("this model cannot be served so: " + "; ".join(found))
