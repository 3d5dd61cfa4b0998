"""`vllm-dynin serve` switches our routes on and nothing else off."""

import pytest

from vllm_dynin.entrypoints.commands.serve import plugins_with_ours


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (None, "dynin,other,lora"),  # all that vLLM would load by itself
        ("", "dynin"),
        ("lora", "lora,dynin"),
        ("dynin", "dynin"),
        ("dynin,lora", "dynin,lora"),
    ],
)
def test_other_plugins_stay_as_they_are(allowed, expected):
    assert plugins_with_ours(allowed, ["dynin", "other", "lora"]) == expected
