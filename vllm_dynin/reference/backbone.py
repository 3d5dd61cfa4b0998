"""The bidirectional transformer of the family in plain PyTorch: the definition serving is held to.

It needs neither vLLM nor remote code, loads the production checkpoint as it is (the parameter
names are the checkpoint's), and trains. A modality is a range of ids; there is nothing
modality-specific here.

Shape suffixes: B rows, T positions, D hidden size, H heads, K key/value heads, E head dimension,
N chosen positions, C chosen columns.

Source: `models/modeling_llada.py` of AIDASLab/Dynin-Omni@d6e3ca8, behaviour only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vllm_dynin import checkpoint
from vllm_dynin.config import LLaDAConfig

Columns = Tensor | range
"""Columns of the head: a range (free, a view) or int64 ids [C] (copies those rows)."""

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of its own: queries [B, H, T, E], keys and values [B, K, T, E] → [B, H, T, E]."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS normalisation over the last axis, in the original's order of rounding.

    Normalised in float32, rounded to the dtype of `x`, and only then scaled: in bfloat16 the other
    order gives other bits.
    """
    x32 = x.float()
    normalised = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * normalised.to(x.dtype)


def rope_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, both float32 [..., head_dim].

    Args:
        positions: integers of any shape; a layout with dropped padding keeps its gaps here.
        head_dim: even; angle j and angle j + head_dim / 2 are the same (half-split layout).
        theta: base of the frequencies.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    frequencies = 1.0 / theta ** (exponent / head_dim)
    angles = positions.to(torch.float32)[..., None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys [..., head_dim] in float32 and round back to the dtype of `x`."""
    x32 = x.float()
    first, second = x32.chunk(2, dim=-1)
    return (x32 * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """The MLP's activation: silu(gate) · up."""
    return F.silu(gate) * up


def segment_mask(segments_BT: Tensor) -> Tensor:
    """Attention mask of packed sequences: bool [B, T, T], true within a segment.

    Args:
        segments_BT: integer id of the sequence each position belongs to.
    """
    return segments_BT[:, :, None] == segments_BT[:, None, :]


class RMSNorm(nn.Module):
    """`rms_norm` with its weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., size]."""
        return rms_norm(x, self.weight, self.eps)


class Block(nn.Module):
    """One pre-norm transformer block; the attributes carry the checkpoint's names."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        hidden, mlp = config.d_model, config.mlp_hidden_size
        key_value = config.n_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.is_grouped = config.n_kv_heads != config.n_heads
        self.attn_norm = RMSNorm(hidden, config.rms_norm_eps)
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, key_value, bias=False)
        self.v_proj = nn.Linear(hidden, key_value, bias=False)
        self.attn_out = nn.Linear(hidden, hidden, bias=False)
        self.ff_norm = RMSNorm(hidden, config.rms_norm_eps)
        self.ff_proj = nn.Linear(hidden, mlp, bias=False)
        self.up_proj = nn.Linear(hidden, mlp, bias=False)
        self.ff_out = nn.Linear(mlp, hidden, bias=False)

    def forward(
        self, x_BTD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | Attention | None
    ) -> Tensor:
        """Apply the block; cos and sin [B or 1, 1, T, E], mask [B, 1, 1 or T, T] broadcast."""
        normed = self.attn_norm(x_BTD)
        q_BHTE = rotate(self._heads(self.q_proj(normed)), cos, sin)
        k_BKTE = rotate(self._heads(self.k_proj(normed)), cos, sin)
        v_BKTE = self._heads(self.v_proj(normed))
        if mask is None or isinstance(mask, Tensor):
            attended = F.scaled_dot_product_attention(
                q_BHTE, k_BKTE, v_BKTE, attn_mask=mask, enable_gqa=self.is_grouped
            )
        else:
            attended = mask(q_BHTE, k_BKTE, v_BKTE)
        x_BTD = x_BTD + self.attn_out(attended.transpose(1, 2).flatten(2))
        normed = self.ff_norm(x_BTD)
        return x_BTD + self.ff_out(gated(self.ff_proj(normed), self.up_proj(normed)))

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class _Transformer(nn.Module):
    def __init__(self, config: LLaDAConfig, num_rows: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(num_rows, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_f = RMSNorm(config.d_model, config.rms_norm_eps)
        self.ff_out = nn.Linear(config.d_model, num_rows, bias=False)


class _Wrapper(nn.Module):
    def __init__(self, config: LLaDAConfig, num_rows: int) -> None:
        super().__init__()
        self.transformer = _Transformer(config, num_rows)


class LLaDA(nn.Module):
    """The whole network. Logits at position i are about the token at position i (no shift).

    Args:
        config: sizes.
        num_rows: rows of the token table and the head; default `config.vocab_size`.
    """

    def __init__(self, config: LLaDAConfig, num_rows: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = _Wrapper(config, config.vocab_size if num_rows is None else num_rows)

    @property
    def num_rows(self) -> int:
        """Rows of the token table: the width of unrestricted logits."""
        return self.model.transformer.wte.num_embeddings

    @property
    def head_weight(self) -> Tensor:
        """The output head, [num_rows, D]."""
        return self.model.transformer.ff_out.weight

    def forward(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        attend: Tensor | None = None,
        rows: Tensor | None = None,
        columns: Columns | None = None,
    ) -> Tensor:
        """Logits in the model's dtype: [B, T, C], or [N, C] where `rows` is given.

        Args:
            ids_BT: int64 token ids.
            positions_BT: int64 [B, T] or [T]; default 0 .. T-1 in every row.
            attend: bool; [B, T] where a key may be seen by everyone, or [B, T, T] where query i
                (axis 1) may see key j (axis 2). Default: everything sees everything. A query that
                may see nothing gets finite values that mean nothing. Floating [B, T, T] is added
                to the attention scores instead.
            rows: bool [B, T], the positions whose logits are wanted, in row-major order.
            columns: ids whose logits are wanted, in that order; default all rows of the head.

        Raises:
            ValueError: a mask has another dtype or shape; columns lie outside the head.
        """
        hidden = self.hidden(ids_BT, positions_BT, attend)
        return self.head(hidden if rows is None else hidden[rows], columns)

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        attend: Tensor | Attention | None = None,
    ) -> Tensor:
        """Final normalised hidden states [B, T, D]; arguments as in `forward`.

        `attend` may also be a function that does the attention of every block, for packed rows.
        """
        if positions_BT is None:
            positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        cos, sin = rope_tables(
            torch.atleast_2d(positions_BT), self.config.head_dim, self.config.rope_theta
        )
        cos, sin = cos[:, None], sin[:, None]
        mask = _attention_mask(attend, ids_BT)
        transformer = self.model.transformer
        x_BTD = transformer.wte(ids_BT)
        for block in transformer.blocks:
            x_BTD = block(x_BTD, cos, sin, mask)
        return transformer.ln_f(x_BTD)

    def head(self, hidden: Tensor, columns: Columns | None = None) -> Tensor:
        """Logits [..., C] of hidden states [..., D], only for the wanted columns."""
        weight = self.head_weight
        if isinstance(columns, range):
            if columns and not (
                0 <= columns[0] < self.num_rows and 0 <= columns[-1] < self.num_rows
            ):
                raise ValueError(f"columns {columns} lie outside the head's {self.num_rows} rows")
            weight = weight[columns.start : columns.stop : columns.step]
        elif columns is not None:
            weight = weight[columns]
        return F.linear(hidden, weight)


def _attention_mask(attend: Tensor | Attention | None, ids_BT: Tensor) -> Tensor | Attention | None:
    if attend is None or not isinstance(attend, Tensor):
        return attend
    batch, length = ids_BT.shape
    if attend.is_floating_point() and attend.shape == (batch, length, length):
        return attend[:, None]
    if attend.dtype != torch.bool or attend.shape not in (
        (batch, length),
        (batch, length, length),
    ):
        raise ValueError(
            f"attend is {attend.dtype} {tuple(attend.shape)}; it must be bool {(batch, length)} "
            f"(visible keys) or {(batch, length, length)} (query × key), or floating "
            f"{(batch, length, length)} to be added to the scores"
        )
    return attend[:, None, None, :] if attend.ndim == 2 else attend[:, None]


def load_reference(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> LLaDA:
    """Load a checkpoint folder into the reference model, in evaluation mode.

    Args:
        path: folder with config.json and safetensors, single or sharded.
        dtype: of the weights; default as stored.
        device: where they go, one tensor at a time.

    Raises:
        ValueError: the folder is no checkpoint of the family, or its tensors do not fit.
    """
    config = checkpoint.load_config(path)
    num_rows = checkpoint.check_tensors(checkpoint.tensor_shapes(path), config)
    config.vocab_size = num_rows  # published files can be stale; plans count on it
    with torch.device("meta"):
        model = LLaDA(config, num_rows)
    state = {
        name: tensor.to(device=device, dtype=dtype)
        for name, tensor in checkpoint.iter_tensors(path)
    }
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()
