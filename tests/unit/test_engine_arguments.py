"""Arguments that commands hand on: decoding options by direction, and the engine's own."""

from __future__ import annotations

import pytest

from vllm_dynin.canvas import Task
from vllm_dynin.entrypoints.engine_arguments import decoding_options
from vllm_dynin.sampling.params import DenoiseParams


def test_decoding_options_by_direction() -> None:
    given = ["t2s.block_length=8", "t2s.cfg_scale=1.5", "t2i.noise_schedule=pow2"]
    given += ["mmu.stop_at_eos=false"]
    assert decoding_options(given) == {
        Task.TEXT_TO_SPEECH: DenoiseParams(block_length=8, cfg_scale=1.5),
        Task.TEXT_TO_IMAGE: DenoiseParams(noise_schedule="pow2"),
        Task.IMAGE_TO_TEXT: DenoiseParams(stop_at_eos=False),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t2s.block_length", "is not DIRECTION.OPTION=VALUE"),
        ("block_length=8", "is not DIRECTION.OPTION=VALUE"),
        ("t2x.steps=8", "directions are t2t, mmu"),
        ("t2s.stepps=8", "did you mean dynin_steps"),
        ("t2s.steps=0", "dynin_steps=0 is invalid"),
    ],
)
def test_wrong_decoding_options_are_explained(text, message) -> None:
    with pytest.raises(ValueError, match=message):
        decoding_options([text])
