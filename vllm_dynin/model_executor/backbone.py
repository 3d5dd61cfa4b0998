"""The bidirectional transformer in vLLM layers.

Shape suffixes: T rows of the step (all requests, one after another), D hidden size.
Pre-norm LLaMA blocks, rotary positions, no biases, plain multi-head attention that is never causal:
what a row attends to is decided by the attention metadata (model_state.py), not here.

Source: `LLaDALlamaBlock` and `LLaDAModel` of the original; reference/backbone.py is the same in
plain PyTorch.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from vllm_dynin.config import LLaDAConfig
from vllm_dynin.kernels import rotary  # noqa: F401 -- defines torch.ops.vllm_dynin.rotate_qkv
from vllm_dynin.kernels.choice import Implementation, chosen


def fuses_on_gpu(vllm_config: VllmConfig) -> bool:
    """Whether rotation and norms take their fused forms: on a GPU, unless DYNIN_KERNELS=torch."""
    device = torch.device(vllm_config.device_config.device_type)
    return device.type == "cuda" and chosen(device) is not Implementation.TORCH


class BidirectionalAttention(nn.Module):
    """Multi-head self-attention over the paged KV cache."""

    def __init__(self, config: LLaDAConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        head_dim, quant = config.head_dim, vllm_config.quant_config
        self.qkv_proj = QKVParallelLinear(
            config.d_model,
            head_dim,
            config.n_heads,
            config.n_kv_heads,
            bias=False,
            quant_config=quant,
            prefix=f"{prefix}.qkv_proj",
        )
        self.attn_out = RowParallelLinear(
            config.n_heads * head_dim,
            config.d_model,
            bias=False,
            quant_config=quant,
            prefix=f"{prefix}.attn_out",
        )
        self.rope = get_rope(
            head_dim,
            max_position=config.max_sequence_length,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            is_neox_style=True,
            dtype=torch.float32,  # the original rotates in float32 (`rope_full_precision`)
        )
        # NOTE: the counts of this rank; with the global ones tensor-parallel ranks corrupt memory.
        num_heads, num_kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        self.head_dim, self.num_rotated_heads = head_dim, num_heads + num_kv_heads
        self.rotates_in_place = fuses_on_gpu(vllm_config)
        self.split_sizes = [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim]
        self.attn = Attention(
            num_heads,
            head_dim,
            head_dim**-0.5,
            num_kv_heads=num_kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=quant,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions_T: Tensor, hidden_TD: Tensor) -> Tensor:
        """Attend; hidden_TD is not modified."""
        qkv, _ = self.qkv_proj(hidden_TD)
        query, key, value = qkv.split(self.split_sizes, dim=-1)
        if self.rotates_in_place:
            cache = self.rope.cos_sin_cache
            torch.ops.vllm_dynin.rotate_qkv(
                qkv, positions_T, cache, self.num_rotated_heads, self.head_dim
            )
            return self.attn_out(self.attn(query, key, value))[0]
        query, key = self.rope(positions_T, query.float(), key.float())
        attended = self.attn(query.to(value.dtype), key.to(value.dtype), value.contiguous())
        return self.attn_out(attended)[0]


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: LLaDAConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        quant = vllm_config.quant_config
        self.attn_norm = RMSNorm(config.d_model, eps=config.rms_norm_eps)
        self.attention = BidirectionalAttention(config, vllm_config, prefix)
        self.ff_norm = RMSNorm(config.d_model, eps=config.rms_norm_eps)
        self.gate_up_proj = MergedColumnParallelLinear(
            config.d_model,
            [config.mlp_hidden_size] * 2,
            bias=False,
            quant_config=quant,
            prefix=f"{prefix}.gate_up_proj",
        )
        self.activation = SiluAndMul()
        self.ff_out = RowParallelLinear(
            config.mlp_hidden_size,
            config.d_model,
            bias=False,
            quant_config=quant,
            prefix=f"{prefix}.ff_out",
        )

    def forward(self, positions_T: Tensor, hidden_TD: Tensor) -> Tensor:
        """Return the block's output, same shape."""
        hidden_TD = hidden_TD + self.attention(positions_T, self.attn_norm(hidden_TD))
        gated, _ = self.gate_up_proj(self.ff_norm(hidden_TD))
        return hidden_TD + self.ff_out(self.activation(gated))[0]

    def fused(
        self, positions_T: Tensor, delta_TD: Tensor, residual_TD: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same with each addition in the norm that follows it.

        vLLM's CUDA kernel rounds the sum to the dtype before it normalises, as separate operations
        do; its plain form does not, so a CPU keeps `forward`.

        Args:
            positions_T: int64.
            delta_TD: what the block before would have added last; written.
            residual_TD: what it would have added it to; written. None for the first block.

        Returns:
            The same two for the block behind.
        """
        if residual_TD is None:
            residual_TD, normed_TD = delta_TD, self.attn_norm(delta_TD)
        else:
            normed_TD, residual_TD = self.attn_norm(delta_TD, residual_TD)
        delta_TD = self.attention(positions_T, normed_TD)
        normed_TD, residual_TD = self.ff_norm(delta_TD, residual_TD)
        gated, _ = self.gate_up_proj(normed_TD)
        return self.ff_out(self.activation(gated))[0], residual_TD


# Compiled where that is asked for (`--compilation-config '{"mode": 3}'`), and plain otherwise. This
# class alone: what surrounds it prepares each step in Python.
@support_torch_compile(dynamic_arg_dims={"ids_T": 0, "positions_T": 0})
class BidirectionalTransformer(nn.Module):
    """Token table, blocks and final norm: ids in, hidden states out."""

    # By keyword only: the decorator goes through positional arguments.
    def __init__(self, *, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = cast(LLaDAConfig, vllm_config.model_config.hf_config)
        self.wte = VocabParallelEmbedding(
            config.vocab_size,
            config.d_model,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.wte",
        )
        self.blocks = nn.ModuleList(
            Block(config, vllm_config, f"{prefix}.blocks.{layer}")
            for layer in range(config.n_layers)
        )
        self.ln_f = RMSNorm(config.d_model, eps=config.rms_norm_eps)
        self.fuses = fuses_on_gpu(vllm_config)
        self.hidden_TD: Tensor
        """What `forward` returned last. The output head reads it here, because a captured graph
        that is replayed writes it, but runs no Python that could keep the returned tensor."""
        shape = vllm_config.scheduler_config.max_num_batched_tokens, config.d_model
        dtype = cast(torch.dtype, vllm_config.model_config.dtype)
        hidden_TD = torch.zeros(shape, dtype=dtype)
        self.register_buffer("hidden_TD", hidden_TD, persistent=False)

    def forward(self, ids_T: Tensor, positions_T: Tensor) -> Tensor:
        """Hidden states [T, D] in the model's dtype, final norm applied."""
        hidden_TD = self.wte(ids_T)
        if self.fuses:
            residual_TD: Tensor | None = None
            for layer in cast("list[Block]", self.blocks):
                hidden_TD, residual_TD = layer.fused(positions_T, hidden_TD, residual_TD)
            return self.ln_f(hidden_TD, residual_TD)[0]
        for block in self.blocks:
            hidden_TD = block(positions_T, hidden_TD)
        hidden_TD = self.ln_f(hidden_TD)
        self.hidden_TD[: len(hidden_TD)].copy_(hidden_TD)
        return hidden_TD
