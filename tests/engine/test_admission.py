"""Options of vLLM that cannot be honoured are refused, each of them; asking for nothing is fine."""

import pytest
from helpers.request_mix import Case, expected_tokens, generate
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RepetitionDetectionParams, StructuredOutputsParams

from vllm_dynin.model_executor.admission import _UNSUPPORTED
from vllm_dynin.model_executor.plan_transport import KEY

PROMPT = [5, 6, 7]

REFUSED = {
    "structured_outputs": {"structured_outputs": StructuredOutputsParams(regex="[ab]+")},
    "presence_penalty": {"presence_penalty": 0.5},
    "frequency_penalty": {"frequency_penalty": -0.5},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "logit_bias": {"logit_bias": {5: 1.0}},
    "bad_words": {"bad_words": ["the"]},
    "allowed_token_ids": {"allowed_token_ids": [5, 6]},
    "min_tokens": {"min_tokens": 1},
    "min_p": {"min_p": 0.1, "temperature": 1.0},
    "top_p": {"top_p": 0.9, "temperature": 1.0},
    "top_k": {"top_k": 3, "temperature": 1.0},
    "prompt_logprobs": {"prompt_logprobs": 0},
    "prompt_logprob_token_ids": {"prompt_logprob_token_ids": [[5], [6]]},
    "logprob_token_ids": {"logprob_token_ids": [5]},
    "thinking_token_budget": {"thinking_token_budget": 0},
    "repetition_detection": {
        "repetition_detection": RepetitionDetectionParams(
            max_pattern_size=2, min_pattern_size=1, min_count=2
        )
    },
    "trace_decode_token_ids": {"trace_decode_token_ids": [5, 6, 7]},
}


def params(**options):
    return SamplingParams(**({"max_tokens": 3, "temperature": 0.0} | options))


def test_every_unsupported_option_is_tried():
    assert REFUSED.keys() == _UNSUPPORTED.keys()
    assert all(hasattr(params(), name) for name in _UNSUPPORTED)  # else vLLM has renamed it


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_options_are_refused(llm, name):
    with pytest.raises((VLLMValidationError, ValueError), match=name):
        generate(llm, [Case(PROMPT, params(**REFUSED[name]))])


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": -1},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0},
        {"stop": [], "stop_token_ids": [], "bad_words": []},
        {"min_tokens": 0},
        {"skip_special_tokens": False, "spaces_between_special_tokens": False},
        {"detokenize": False},
        {"extra_args": {"somebody_elses": [1, {"x": 2}]}},
    ],
)
def test_asking_for_nothing_is_fine(llm, reference, options):
    case = Case(PROMPT, params(**options))
    assert generate(llm, [case]) == [expected_tokens(reference, case)]


def test_the_internal_argument_is_refused(llm):
    with pytest.raises(VLLMValidationError, match=f"extra argument {KEY} is internal; remove it"):
        generate(llm, [Case(PROMPT, params(extra_args={KEY: {}}))])


def test_pooling_is_refused(llm):
    with pytest.raises(ValueError, match=r"pooling|embed"):
        llm.embed([{"prompt_token_ids": PROMPT}])


@pytest.mark.parametrize(
    ("stated", "expected"),
    [(509, 509), (20, 20), (None, 509)],
    ids=["all that fits", "some", "none"],
)
def test_a_stated_length_is_kept(llm, reference, stated, expected):
    """Stating exactly what vLLM would fill in is stating it."""
    case = Case(PROMPT, params(max_tokens=stated, ignore_eos=True, extra_args={"dynin_steps": 4}))
    (tokens,) = generate(llm, [case])
    assert len(tokens) == expected


def test_a_stated_length_is_not_cut_for_guidance(llm):
    options = {"dynin_steps": 4, "dynin_cfg_scale": 1.0}
    with pytest.raises(VLLMValidationError, match=r"needs 1024 rows .* guidance included"):
        generate(llm, [Case(PROMPT, params(max_tokens=509, extra_args=options))])
    (tokens,) = generate(
        llm, [Case(PROMPT, params(max_tokens=None, ignore_eos=True, extra_args=options))]
    )
    assert len(tokens) == (512 - 32) // 2 - 3
