"""How wide a canvas may be, apart from how wide vLLM's buffers for draft tokens are.

`DiffusionConfig.canvas_length` is the number of draft tokens of one step to vLLM, which sizes
buffers by it, warms kernels up with prompts longer than it, and would capture graphs of its width.
One placeholder is all a denoising step needs to be told apart from a prompt pass (scheduler.py), so
vLLM is told 1. What `--diffusion-config '{"canvas_length": N}'` asks for, the widest canvas served,
is kept on the checkpoint's configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_WIDEST = "widest_canvas"


def settle_canvas_width(vllm_config: VllmConfig) -> None:
    """Keep the width the user asked for, and tell vLLM to draft one token."""
    from vllm.config.diffusion import DiffusionConfig

    asked, config = vllm_config.diffusion_config, vllm_config.model_config.hf_config
    if asked is not None and asked.canvas_length is not None and not hasattr(config, _WIDEST):
        setattr(config, _WIDEST, asked.canvas_length)
    vllm_config.diffusion_config = DiffusionConfig(canvas_length=1)


def widest_canvas(vllm_config: VllmConfig) -> int:
    """Slots of the widest canvas served: what the user asked for, else the whole context."""
    model = vllm_config.model_config
    return int(getattr(model.hf_config, _WIDEST, model.max_model_len))
