"""Plans of text requests, as the engine and the reference driver follow them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_dynin.config import LLaDAConfig
from vllm_dynin.planning import PlanRequest, StandardOptions, make_plan
from vllm_dynin.sampling.decoder import Plan
from vllm_dynin.sampling.params import PREFIX, DenoiseParams


def text_plan(
    prompt_ids: Sequence[int],
    config: LLaDAConfig,
    max_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    logprobs: int | None = None,
    **options: Any,
) -> Plan:
    """Plan a request; `options` are those of `DenoiseParams`, as a client would write them."""
    standard = StandardOptions(
        max_tokens=max_tokens, temperature=temperature, seed=seed, logprobs=logprobs
    )
    own = DenoiseParams.parse({PREFIX + name: value for name, value in options.items()})
    request = PlanRequest(prompt_ids=tuple(prompt_ids), standard=standard, options=own)
    return make_plan(request, config)
