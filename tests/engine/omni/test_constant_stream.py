"""Speech guidance hides the speech so far, so its second stream is computed once per request."""

import pytest
from helpers.omni_mix import Heads, case_of, expected, plan_of, run, tokens_of

from vllm_dynin.canvas import Task
from vllm_dynin.model_executor.engine_sampler import DenoisingLogits, MaskedDiffusionSampler
from vllm_dynin.model_executor.row_layout import RowLayout
from vllm_dynin.report import REPORT

STEPS = 6


@pytest.fixture
def rows_of_steps(monkeypatch):
    """Rows of each denoising step that the engine runs."""
    found = []
    call = MaskedDiffusionSampler.__call__

    def recording(self, logits, input_batch, draft_logits=None):
        if isinstance(logits, DenoisingLogits):
            found.append(input_batch.num_tokens)
        return call(self, logits, input_batch, draft_logits)

    monkeypatch.setattr(MaskedDiffusionSampler, "__call__", recording)
    return found


def case(config, task, **options):
    head = Heads(config, 41).head(task)
    return case_of(
        head,
        {"steps": STEPS, "block_length": 4, "report": True} | options,
        max_tokens=24,
        temperature=1.0,
        seed=3,
        ignore_eos=True,
    )


@pytest.mark.parametrize("task", [Task.TEXT_TO_SPEECH, Task.SPEECH_TO_SPEECH])
def test_speech_guidance(omni, omni_reference, rows_of_steps, task):
    request = case(omni_reference.config, task, guidance_scale=2.0)
    (output,) = run(omni, [request])
    assert tokens_of([output]) == [expected(omni_reference, request)]
    layout = RowLayout.of(plan_of(request, omni_reference.config).canvas, 32)
    second = layout.num_rows - layout.conditional_start
    assert layout.conditional_start > 0
    assert rows_of_steps == [layout.num_rows, *[second] * (STEPS - 1)]
    assert output.kv_transfer_params[REPORT]["forwards"] == STEPS + 1


def test_a_second_stream_that_follows_is_computed_every_time(omni, omni_reference, rows_of_steps):
    """Text guidance, and speech guided away from another text."""
    text = case(omni_reference.config, Task.TEXT_TO_TEXT, guidance_scale=2.0)
    other = tuple(Heads(omni_reference.config, 42).head(Task.TEXT_TO_SPEECH))
    speech = case(
        omni_reference.config,
        Task.TEXT_TO_SPEECH,
        guidance_scale=2.0,
        uncond_prompt_token_ids=other,
    )
    for request in (text, speech):
        rows_of_steps.clear()
        (output,) = run(omni, [request])
        assert tokens_of([output]) == [expected(omni_reference, request)]
        layout = RowLayout.of(plan_of(request, omni_reference.config).canvas, 32)
        assert rows_of_steps == [layout.num_rows] * STEPS
        assert output.kv_transfer_params[REPORT]["forwards"] == 2 * STEPS
