"""What the engine must be configured as, refused at start-up where it cannot be.

vLLM calls these hooks for our architectures while it builds its configuration.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from vllm import envs
from vllm.config import CompilationMode, CUDAGraphMode
from vllm.config.scheduler import SchedulerConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from vllm_dynin import checkpoint, compat, sizing
from vllm_dynin import envs as our_envs
from vllm_dynin.model_executor import checkpoint_check
from vllm_dynin.model_executor.canvas_width import settle_canvas_width
from vllm_dynin.model_executor.cpu_memory import settle_kv_memory

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

logger = logging.getLogger(__name__)

SCHEDULER = "vllm_dynin.model_executor.scheduler.MaskedDiffusionScheduler"
WORKER_EXTENSION = "vllm_dynin.model_executor.worker_extension.MediaWorkerExtension"
NON_CAUSAL_BACKENDS = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN", "FLEX_ATTENTION")
"""Attention backends with a paged KV cache and `causal=False`."""
_BREAKABLE = "VLLM_USE_BREAKABLE_CUDAGRAPH"
_GRAPH_ROWS = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512, *range(640, 2049, 128)]
"""Rows of a step for which pieces are captured. vLLM's default sizes are those of one row a request
and step; beyond the largest, a step is bound by its matrix products, and launches cost nothing."""


class EngineConfig(VerifyAndUpdateConfig):
    """Configuration hooks of every architecture of the family."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Check the checkpoint, and read what decides how it is served.

        The row count of the token table is taken from the weights, not from `config.json`.

        Raises:
            ValueError: the checkpoint is damaged, or its parts do not belong together.
        """
        _set_video_frames(model_config)
        compat.share_no_media(model_config)
        compat.state_nothing_by_default()
        checkpoint_check.read_directions(model_config)
        checkpoint_check.check_companions(model_config)
        shapes = checkpoint_check.weight_shapes(model_config)
        if shapes is None:  # the loader checks the rows (weights.py)
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
        _refuse(vllm_config)
        compat.lower_request_limits()
        compat.guard_every_path()
        model, scheduler = vllm_config.model_config, vllm_config.scheduler_config
        settle_canvas_width(vllm_config)
        _settle_compilation(vllm_config)
        vllm_config.attention_config.use_non_causal = True  # the selector skips those that cannot
        scheduler.scheduler_cls = SCHEDULER
        parallel = vllm_config.parallel_config
        parallel.worker_extension_cls = parallel.worker_extension_cls or WORKER_EXTENSION
        # Only where it is asked for (`--async-scheduling`), until it has been measured on a GPU.
        scheduler.async_scheduling = bool(scheduler.async_scheduling)
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
        # What the user left out cannot be told from vLLM's default by now; every default of it is
        # at least this (vLLM's hook for DiffusionGemma reasons the same way).
        if scheduler.max_num_seqs >= SchedulerConfig.DEFAULT_MAX_NUM_SEQS:
            scheduler.max_num_seqs = sizing.default_requests(scheduler.max_num_batched_tokens)
            logger.info(
                "max_num_seqs is %d: a step holds whole requests, and %d rows hold no more; "
                "set --max-num-seqs below %d for another number",
                scheduler.max_num_seqs,
                scheduler.max_num_batched_tokens,
                SchedulerConfig.DEFAULT_MAX_NUM_SEQS,
            )
        if current_platform.is_cpu():
            settle_kv_memory(vllm_config)


def _settle_compilation(vllm_config: VllmConfig) -> None:
    """Run layers by vLLM's fused operations unless compilation was asked for.

    vLLM's default compiles, and leaves its fused operations off in the belief that the compiler
    fuses. Asked for (`--compilation-config '{"mode": 3}'`), the transformer is compiled, and graphs
    are those of its pieces: what surrounds it is Python that must run at every step.
    """
    compilation: Any = vllm_config.compilation_config  # None is declared for none of its fields
    if compilation.mode is None:  # filled in by vLLM after this
        compilation.mode = CompilationMode.NONE
    is_compiled = compilation.mode == CompilationMode.VLLM_COMPILE
    if compilation.cudagraph_mode is None:
        compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE if is_compiled else CUDAGraphMode.NONE
    if is_compiled and compilation.cudagraph_capture_sizes is None:
        budget = vllm_config.scheduler_config.max_num_batched_tokens
        compilation.cudagraph_capture_sizes = [n for n in _GRAPH_ROWS if n <= budget]
    if envs.VLLM_BATCH_INVARIANT and _BREAKABLE not in os.environ:
        os.environ[_BREAKABLE] = "0"
        logger.info(
            "%s is 0: batch-invariant kernels are used without the graphs that vLLM would turn on "
            "with them, which replay whole forwards",
            _BREAKABLE,
        )


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
    scheduler, attention = vllm_config.scheduler_config, vllm_config.attention_config
    compilation: Any = vllm_config.compilation_config
    graphs = compilation.cudagraph_mode
    backends = [attention.backend, *attention.backend_per_kind.values()]
    named = [backend.name for backend in backends if backend is not None]
    causal = [name for name in named if name not in NON_CAUSAL_BACKENDS]
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
        f"attention backend {', '.join(causal)} cannot attend in both directions; "
        f"use one of {', '.join(NON_CAUSAL_BACKENDS)}": bool(causal),
        f"cudagraph_mode {getattr(graphs, 'name', graphs)} replays whole forwards, which skips the "
        "Python that prepares each step and gives wrong tokens; use NONE, or PIECEWISE with "
        "compilation mode 3": graphs is not None and graphs.has_full_cudagraphs(),
        "compilation mode 1 (STOCK_TORCH_COMPILE) is not supported; use 0 (vLLM's fused "
        "operations, the default) or 3 (compiled)": (
            compilation.mode == CompilationMode.STOCK_TORCH_COMPILE
        ),
        f"{our_envs.ORDER}=short orders by length, --scheduling-policy priority by priority; leave "
        "one of them out": our_envs.prefers_short() and scheduler.policy == "priority",
        f"{_BREAKABLE}=1 replays whole forwards, which skips the Python that prepares each step "
        "and gives wrong tokens; unset it": os.environ.get(_BREAKABLE, "0") not in ("", "0"),
    }
    found = [message for message, is_wrong in problems.items() if is_wrong]
    if found:
        raise ValueError("this model cannot be served so: " + "; ".join(found))
