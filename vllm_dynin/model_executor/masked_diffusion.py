"""The model vLLM loads for text: canvas ids in, logits of the wanted rows out. No sampling."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from vllm_dynin.config import LLaDAConfig
from vllm_dynin.model_executor.backbone import BidirectionalTransformer
from vllm_dynin.model_executor.engine_sampler import DenoisingLogits
from vllm_dynin.model_executor.engine_step import EngineStep
from vllm_dynin.model_executor.head import RestrictedHead
from vllm_dynin.model_executor.weights import load_checkpoint
from vllm_dynin.sampling.columns import Columns

if TYPE_CHECKING:
    from vllm_dynin.model_executor.model_state import MaskedDiffusionState


PUBLISHED = "model.transformer"
"""Layers tell a quantisation method their published names, whatever attribute holds them here: so
the lists of a quantised checkpoint (`ignore`, `modules_to_not_convert`), regular expressions
among them, mean the layers that whoever quantised it meant."""


class MaskedDiffusionLM(nn.Module):
    """Bidirectional masked-diffusion language model (LLaDA)."""

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["ff_proj", "up_proj"],
    }

    @staticmethod
    def get_model_state_cls() -> type[MaskedDiffusionState]:
        """VLLM's V2 runner asks for the class that prepares inputs and replaces the sampler."""
        from vllm_dynin.model_executor.model_state import MaskedDiffusionState

        return MaskedDiffusionState

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = cast(LLaDAConfig, vllm_config.model_config.hf_config)
        self.config = config
        self.is_quantized = vllm_config.quant_config is not None
        self.transformer = BidirectionalTransformer(
            vllm_config=vllm_config, prefix=f"{prefix}{PUBLISHED}"
        )
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.d_model,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}{PUBLISHED}.ff_out",
        )
        self.head = RestrictedHead(self.lm_head)
        self.step: EngineStep | None = None
        """Set by the model state before each forward; None where no request denoises."""

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Rows of the token table."""
        return self.transformer.wte(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Hidden states [T, D] of all rows of the step."""
        return self.transformer(input_ids, positions)

    def compute_logits(self, hidden_states: Tensor) -> DenoisingLogits | Tensor:
        """Logits of the wanted rows, which the sampler asks for.

        vLLM passes other rows than those that matter, so what counts is `step`, and the hidden
        states are those that the transformer has left in its buffer: a replayed graph fills that
        too. Without a step (vLLM measuring memory or warming up) all rows of the argument get
        logits over the whole table: that many are asked for, and how many they are is vLLM's to
        bound.
        """
        if self.step is not None:
            return DenoisingLogits(self.head, self.transformer.hidden_TD, self.step)
        whole = Columns(((0, self.config.vocab_size),))
        return self.head(hidden_states, whole)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the published tensor names; see weights.py."""
        return load_checkpoint(
            dict(self.named_parameters()), self.config, weights, is_quantized=self.is_quantized
        )
