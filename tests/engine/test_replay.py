"""A replayed graph runs no Python of the model: what the sampler reads must be in the buffer."""

import torch
from helpers.request_mix import expected_tokens, generate, mixed_cases


def test_the_outer_module_left_out(llm, reference, monkeypatch):
    """The transformer alone, as a replay would run it; what it returns is lost."""
    model = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    model = model.model_runner.model
    calls = []

    def replay(input_ids, positions, **kwargs):
        calls.append(len(input_ids))
        return torch.zeros_like(model.transformer(input_ids, positions))

    monkeypatch.setattr(model, "forward", replay)
    cases = mixed_cases(24, reference.config, seed=11)
    assert generate(llm, cases) == [expected_tokens(reference, case) for case in cases]
    assert len(set(calls)) > 10  # batches of many sizes: rows of a larger one are left behind
