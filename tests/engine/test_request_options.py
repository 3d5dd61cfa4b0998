"""Standard request options, each against what the reference driver says the answer is."""

import random

import pytest
import torch
from helpers.engines import start_llm
from helpers.request_mix import Case, cut, decode, expected_tokens, generate, random_prompt
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import BeamSearchParams

from vllm_dynin.sampling.params import DenoiseParams

BLOCK = 8


def make_case(reference, number, *, length=12, own=None, **standard):
    rng = random.Random(number)
    standard = {"max_tokens": 32, "temperature": 0.0} | standard
    params = DenoiseParams(**({"block_length": BLOCK} | (own or {}))).to_sampling_params(**standard)
    return Case(random_prompt(rng, reference.config, length), params)


def find_case(reference, wanted, **options):
    """The first of many cases whose whole reference answer is as `wanted`."""
    for seed in range(400):
        case = make_case(reference, seed, **options)
        tokens = decode(reference, case).ids.tolist()
        if wanted(tokens):
            return case, tokens
    raise AssertionError("no such answer among 400")


@pytest.fixture(scope="module")
def vocabulary(reference):
    return reference.config.vocabulary


# --- where an answer ends -------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["eos", "eot"])
def ending_case(request, reference, vocabulary):
    """A case whose answer has that token in its second block, and the other one nowhere."""
    end = getattr(vocabulary, request.param)
    other = ({vocabulary.eos, vocabulary.eot} - {end}).pop()

    def wanted(tokens):
        return (
            end in tokens[BLOCK + 1 : 2 * BLOCK - 1]
            and end not in tokens[:BLOCK]
            and (other not in tokens)
        )

    case, tokens = find_case(reference, wanted)
    return case, tokens, end


def changed(case, **standard):
    """The same case with other parameters; `own` replaces our options."""
    params = case.params.clone()
    if (own := standard.pop("own", None)) is not None:
        params.extra_args = DenoiseParams(block_length=BLOCK, **own).to_extra_args()
    for name, value in standard.items():
        setattr(params, name, value)
    return Case(case.prompt_ids, params)


def test_an_answer_ends_exactly_at_eos_or_end_of_turn(llm, ending_case):
    case, tokens, end = ending_case
    (output,) = llm.generate([case.prompt], [case.params], use_tqdm=False)
    (answer,) = output.outputs
    assert list(answer.token_ids) == cut(tokens, [end])
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize(
    "options",
    [
        {"ignore_eos": True},
        {"own": {"stop_at_eos": False}},
        {"own": {"stop_at_eos": False}, "ignore_eos": True},
    ],
)
def test_eos_can_be_ignored(llm, ending_case, options):
    case, tokens, _ = ending_case
    (output,) = llm.generate([case.prompt], [changed(case, **options).params], use_tqdm=False)
    assert list(output.outputs[0].token_ids) == tokens
    assert output.outputs[0].finish_reason == "length"


def test_stopping_on_request_is_the_default_spelt_out(llm, ending_case):
    case, tokens, end = ending_case
    found = generate(llm, [changed(case, own={"stop_at_eos": True})])
    assert found == [cut(tokens, [end])]


def test_reference_parity_goes_on_behind_eos(llm, reference, vocabulary):
    case, tokens = find_case(
        reference,
        lambda tokens: vocabulary.eos in tokens[:16],
        own={"parity": "reference", "block_length": BLOCK},
    )
    assert generate(llm, [case]) == [tokens]
    stopping = changed(case, own={"parity": "reference", "stop_at_eos": True})
    assert generate(llm, [stopping]) == [cut(tokens, [vocabulary.eos, vocabulary.eot])]


def test_ignoring_eos_while_stopping_at_it_is_refused(llm, ending_case):
    case, _, _ = ending_case
    case = changed(case, own={"stop_at_eos": True}, ignore_eos=True)
    with pytest.raises(VLLMValidationError, match="contradicts ignore_eos=True; leave one of"):
        llm.generate([case.prompt], [case.params], use_tqdm=False)


def test_stop_token_ids(llm, reference, vocabulary):
    ends = (vocabulary.eos, vocabulary.eot)
    case, tokens = find_case(
        reference, lambda tokens: not set(ends) & set(tokens) and len(set(tokens)) > 12
    )
    stop = tokens[19]
    case = changed(case, stop_token_ids=[stop])
    (output,) = llm.generate([case.prompt], [case.params], use_tqdm=False)
    assert list(output.outputs[0].token_ids) == cut(tokens, [stop])
    assert output.outputs[0].finish_reason == "stop"
    assert output.outputs[0].stop_reason == stop


@pytest.mark.parametrize("name", ["eos", "eot"])
def test_eos_among_the_stop_tokens_is_kept_where_the_client_asked_for_it(
    llm, reference, vocabulary, name
):
    """`stop_token_ids` is the client's own wish, whatever `ignore_eos` says."""
    end = getattr(vocabulary, name)
    case, tokens = find_case(reference, lambda tokens: end in tokens[4:20])
    case = changed(case, stop_token_ids=[end], ignore_eos=True)
    assert generate(llm, [case]) == [cut(tokens, [end])]


def test_stop_strings(llm, reference, tokenizer, vocabulary):
    """Text is cut before the string, wherever in a block it is completed."""

    def wanted(tokens):
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        return (
            "\ufffd" not in text[10:14]
            and len(text) > 30
            and not ({vocabulary.eos, vocabulary.eot} & set(tokens))
        )

    case, tokens = find_case(reference, wanted)
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    stop = text[10:14]
    for include in (False, True):
        with_stop = changed(case, stop=[stop], include_stop_str_in_output=include)
        (output,) = llm.generate([case.prompt], [with_stop.params], use_tqdm=False)
        end = text.index(stop) + (len(stop) if include else 0)
        assert output.outputs[0].text == text[:end]
        assert output.outputs[0].finish_reason == "stop"
        assert output.outputs[0].stop_reason == stop


# --- several answers, seeds -----------------------------------------------------------------------


def test_n_answers_have_seeds_of_their_own(llm, reference):
    case = make_case(reference, 1, n=3, temperature=1.0, seed=11)
    (output,) = llm.generate([case.prompt], [case.params], use_tqdm=False)
    found = [list(answer.token_ids) for answer in output.outputs]
    expected = []
    for number in range(3):
        one = changed(case, n=1, seed=11 + number)
        expected.append(expected_tokens(reference, one))
    assert found == expected
    assert found[0] != found[1]


def test_without_a_seed_answers_differ(llm, reference):
    case = make_case(reference, 2, temperature=1.0, ignore_eos=True)
    assert case.params.seed is None
    first, second, third = generate(llm, [case] * 3)
    assert first != second != third != first


def test_greedy_needs_no_seed(llm, reference):
    case = make_case(reference, 2, ignore_eos=True)
    first, second = generate(llm, [case] * 2)
    assert first == second == expected_tokens(reference, case)


# --- log-probabilities ----------------------------------------------------------------------------

# float32 noise of two attention kernels in logits up to 30, which guidance at 1.5 multiplies by 4;
# the largest difference seen is 6e-5.
LOGPROB_TOLERANCE = 2e-4


@pytest.mark.parametrize("parity", [None, "reference"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1.5])
@pytest.mark.parametrize("num_top", [0, 4])
def test_logprobs_are_those_of_the_committing_step(
    llm, reference, parity, temperature, scale, num_top
):
    case = make_case(
        reference,
        4,
        logprobs=num_top,
        temperature=temperature,
        seed=3,
        ignore_eos=True,
        own={"cfg_scale": scale, "parity": parity, "block_length": BLOCK},
    )
    decoder = decode(reference, case)
    expected = decoder.logprobs(0, 32)
    (output,) = llm.generate([case.prompt], [case.params], use_tqdm=False)
    (answer,) = output.outputs
    assert list(answer.token_ids) == decoder.ids.tolist()
    assert len(answer.logprobs) == 32
    for place, (token, found) in enumerate(zip(answer.token_ids, answer.logprobs, strict=True)):
        ids = expected.ids[place].tolist()
        assert ids[0] == token
        values = dict(zip(ids, expected.logprobs[place].tolist(), strict=True))
        assert found.keys() == set(ids)
        for token_id, value in values.items():
            assert found[token_id].logprob == pytest.approx(value, abs=LOGPROB_TOLERANCE)
        if len(set(ids)) >= num_top:  # not a mask that was left, which has no alternatives
            assert found[token].rank == expected.rank[place]
            for rank, token_id in enumerate(ids[1:], start=1):
                assert found[token_id].rank == rank
    total = sum(
        found[token].logprob for token, found in zip(answer.token_ids, answer.logprobs, strict=True)
    )
    assert answer.cumulative_logprob == pytest.approx(total, abs=1e-3)


def test_logprobs_beside_requests_without_them(llm, reference):
    cases = [
        make_case(reference, 5, logprobs=2),
        make_case(reference, 6),
        make_case(reference, 7, logprobs=0),
        make_case(reference, 8, logprobs=5),
    ]
    outputs = llm.generate([c.prompt for c in cases], [c.params for c in cases], use_tqdm=False)
    for case, output in zip(cases, outputs, strict=True):
        (answer,) = output.outputs
        tokens = expected_tokens(reference, case)
        assert list(answer.token_ids) == tokens
        if case.params.logprobs is None:
            assert answer.logprobs is None
            continue
        expected = decode(reference, case).logprobs(0, 32).logprobs[:, 0]
        found = torch.tensor(
            [found[token].logprob for token, found in zip(tokens, answer.logprobs, strict=True)]
        )
        assert torch.allclose(found, expected[: len(tokens)], atol=LOGPROB_TOLERANCE, rtol=0)


# --- lengths and prompts --------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 1.0])
def test_without_max_tokens_the_papers_length_or_what_fits(llm, reference, scale):
    case = make_case(reference, 3, length=40, ignore_eos=True, own={"cfg_scale": scale, "steps": 4})
    params = changed(case, max_tokens=None).params
    (output,) = llm.generate([case.prompt], [params], use_tqdm=False)
    found = list(output.outputs[0].token_ids)
    fits = 512 - 40 if scale is None else (512 - 32) // 2 - 40
    assert len(found) == fits  # below the 1,024 of the paper
    with_length = changed(case, max_tokens=fits)
    assert found == expected_tokens(reference, with_length)


def test_finished_prompt_ids_are_used_as_they_are(llm, reference, vocabulary):
    """Control tokens, an unusual order and no BOS: nothing is added or changed."""
    prompt = [vocabulary.eot, 5, vocabulary.bos, 6, vocabulary.pad, vocabulary.start_header]
    case = Case(prompt, make_case(reference, 0).params)
    (output,) = llm.generate([case.prompt], [case.params], use_tqdm=False)
    assert output.prompt_token_ids == prompt
    assert list(output.outputs[0].token_ids) == expected_tokens(reference, case)


def test_a_guided_request_reports_the_conditional_prompt_only(llm, reference):
    case = make_case(reference, 9, length=13, own={"cfg_scale": 2.0})
    (output,) = llm.generate([case.prompt], [case.params], use_tqdm=False)
    assert output.prompt_token_ids == case.prompt_ids


def test_text_prompts_are_tokenized_with_nothing_added(llm, reference, tokenizer):
    text = "Describe the picture"
    ids = tokenizer.encode(text, add_special_tokens=False)
    case = Case(ids, make_case(reference, 0).params)
    (output,) = llm.generate([text], [case.params], use_tqdm=False)
    assert output.prompt_token_ids == ids
    expected = expected_tokens(reference, case)
    assert list(output.outputs[0].token_ids) == expected
    end = expected[-1] in (tokenizer.eos_token_id, reference.config.vocabulary.eot)
    assert output.outputs[0].text == tokenizer.decode(
        expected[:-1] if end else expected, skip_special_tokens=True
    )


def test_chat(llm, reference, tokenizer, vocabulary):
    messages = [
        {"role": "system", "content": "detail"},
        {"role": "user", "content": "What does the speaker say? "},
    ]
    params = make_case(reference, 0).params
    (output,) = llm.chat(messages, params, use_tqdm=False)
    v = vocabulary

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    # One newline after each header, which must be tokenized with the text behind it.
    expected = [
        v.bos,
        *(v.start_header, *encode("system"), v.end_header, *encode("\ndetail"), v.eot),
        *(v.start_header, *encode("user"), v.end_header),
        *(*encode("\nWhat does the speaker say?"), v.eot),
        *(v.start_header, *encode("assistant"), v.end_header, *encode("\n")),
    ]
    assert output.prompt_token_ids == expected
    case = Case(expected, params)
    assert list(output.outputs[0].token_ids) == expected_tokens(reference, case)
    thinking = llm.chat(
        messages, params, chat_template_kwargs={"enable_thinking": True}, use_tqdm=False
    )
    assert "/think\n" in tokenizer.decode(thinking[0].prompt_token_ids)


def test_beam_search_is_refused(llm, reference):
    case = make_case(reference, 0)
    with pytest.raises(VLLMValidationError, match="use_beam_search=True cannot be honoured"):
        llm.beam_search([case.prompt], BeamSearchParams(beam_width=2, max_tokens=4))


def test_shared_parameters_are_not_modified(llm, reference):
    params = make_case(reference, 0).params
    before = repr(params)
    prompts = [make_case(reference, seed).prompt for seed in range(3)]
    llm.generate(prompts, params, use_tqdm=False)
    assert repr(params) == before


def test_plain_sampling_params_are_enough(llm, reference):
    case = Case(make_case(reference, 5).prompt_ids, SamplingParams(max_tokens=20, temperature=0))
    assert generate(llm, [case]) == [expected_tokens(reference, case)]


def test_logprobs_of_more_tokens_than_there_are(checkpoint_folder, reference):
    """A server may allow any number; a text answer has 589 ids, the mask not among them."""
    with start_llm(checkpoint_folder, max_logprobs=-1) as llm:
        case = make_case(reference, 0, max_tokens=3, logprobs=588)
        (output,) = llm.generate([case.prompt], [case.params], use_tqdm=False)
        assert len(output.outputs[0].logprobs[0]) == 588
        for wrong in (589, -1):
            with pytest.raises(VLLMValidationError, match=rf"logprobs={wrong} .* use 0 to 588"):
                generate(llm, [changed(case, logprobs=wrong)])
        assert generate(llm, [case]) == [expected_tokens(reference, case)]
