"""How a request's plan gets from the scheduler to the workers: inside its sampling parameters.

vLLM sends each worker the request's `SamplingParams` and nothing else of ours. The key is set by
the scheduler alone; admission refuses a request that brings it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_dynin.planning import PlanRequest

if TYPE_CHECKING:
    from vllm import SamplingParams

KEY = "_dynin_plan"


def attach(params: SamplingParams, request: PlanRequest) -> None:
    """Put what the plan is made from into the request's parameters, in place."""
    params.extra_args = {**(params.extra_args or {}), KEY: request}


def received(params: SamplingParams | None) -> PlanRequest | None:
    """What `attach` put there, None where there is nothing (vLLM's own warm-up requests)."""
    extra = params.extra_args if params is not None else None
    return extra.get(KEY) if extra else None
