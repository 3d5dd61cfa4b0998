"""How a request's plan gets from the scheduler to the workers: inside its sampling parameters.

vLLM sends each worker the request's `SamplingParams` and nothing else of ours. The key is set by
the scheduler alone; admission refuses a request that brings it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_dynin.sampling.decoder import Plan

if TYPE_CHECKING:
    from vllm import SamplingParams

KEY = "_dynin_plan"


def attach_plan(params: SamplingParams, plan: Plan) -> None:
    """Put the plan into the request's parameters, in place."""
    params.extra_args = {**(params.extra_args or {}), KEY: plan}


def received_plan(params: SamplingParams | None) -> Plan | None:
    """The plan in a request's parameters, None where there is none."""
    extra = params.extra_args if params is not None else None
    return extra.get(KEY) if extra else None
