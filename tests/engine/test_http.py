"""The OpenAI-compatible server: what its clients get is what the reference driver says."""

import asyncio
import json
import random
import subprocess
import sys

import openai
import pytest
from helpers.malformed_requests import COMPLETIONS, GOOD, MALFORMED
from helpers.request_mix import Case, decode, expected_tokens, mixed_cases, random_prompt
from helpers.server import serve

from vllm_dynin.sampling.params import DenoiseParams


@pytest.fixture(scope="module")
def server(checkpoint_folder, tmp_path_factory):
    with serve(checkpoint_folder, tmp_path_factory.mktemp("server") / "log.txt") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def text_of(tokenizer, tokens, vocabulary):
    """What a client sees: special tokens skipped, the ending one not shown."""
    if tokens and tokens[-1] in (vocabulary.eos, vocabulary.eot):
        tokens = tokens[:-1]
    return tokenizer.decode(tokens, skip_special_tokens=True)


def complete(client, case, **changes):
    """The case as a completion request with token ids in the answer."""
    params = case.params
    body = {"return_token_ids": True, "vllm_xargs": params.extra_args}
    return client.completions.create(
        model="tiny",
        prompt=case.prompt_ids,
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        seed=params.seed,
        extra_body=body | changes.pop("extra_body", {}),
        **changes,
    )


def ids_of(choice):
    return choice.token_ids


def text_case(reference, number, *, own=None, **standard):
    standard = {"max_tokens": 24, "temperature": 0.0} | standard
    params = DenoiseParams(**(own or {"block_length": 8})).to_sampling_params(**standard)
    return Case(random_prompt(random.Random(number), reference.config, 20), params)


def test_64_mixed_requests_at_once(server, reference):
    cases = mixed_cases(64, reference.config)

    async def run():
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        async with client:
            return await asyncio.gather(*(complete(client, case) for case in cases))

    found = [ids_of(answer.choices[0]) for answer in asyncio.run(run())]
    assert found == [expected_tokens(reference, case) for case in cases]


def test_chat(client, reference, tokenizer):
    messages = [{"role": "user", "content": "What does the speaker say?"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, tokenize=True
    )
    case = Case(prompt, text_case(reference, 0, temperature=1.0, seed=7).params)
    answer = client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_completion_tokens=24,
        temperature=1.0,
        seed=7,
        extra_body={"vllm_xargs": case.params.extra_args},
    )
    expected = expected_tokens(reference, case)
    vocabulary = reference.config.vocabulary
    assert answer.choices[0].message.content == text_of(tokenizer, expected, vocabulary)
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(expected)
    is_cut = expected[-1] in (vocabulary.eos, vocabulary.eot)
    assert answer.choices[0].finish_reason == ("stop" if is_cut else "length")


@pytest.mark.parametrize("route", ["chat", "completions"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streamed_deltas_add_up(client, route, temperature):
    options = {
        "model": "tiny",
        "temperature": temperature,
        "seed": 3,
        "max_tokens": 40,
        "extra_body": {"ignore_eos": True, "vllm_xargs": {"dynin_block_length": 8}},
    }
    if route == "chat":
        create, what = client.chat.completions.create, {"messages": GOOD["chat"]["messages"]}
    else:
        create, what = client.completions.create, {"prompt": "Describe the picture"}
    whole = create(**what, **options)
    chunks = list(create(**what, **options, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0] for chunk in chunks if chunk.choices]
    if route == "chat":
        texts = [piece.delta.content or "" for piece in pieces]
        assert "".join(texts) == whole.choices[0].message.content
    else:
        texts = [piece.text for piece in pieces]
        assert "".join(texts) == whole.choices[0].text
    assert sum(bool(text) for text in texts) > 1  # in pieces, not all at the end
    assert pieces[-1].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens == 40


def test_usage_counts_the_conditional_prompt_only(client, reference):
    plain = text_case(reference, 2, own={"block_length": 8})
    guided = text_case(reference, 2, own={"block_length": 8, "cfg_scale": 1.5})
    for case in (plain, guided):
        answer = complete(client, case)
        assert answer.usage.prompt_tokens == len(case.prompt_ids)
        assert ids_of(answer.choices[0]) == expected_tokens(reference, case)


def test_n_answers(client, reference):
    case = text_case(reference, 3, temperature=1.0, seed=40)
    answer = complete(client, case, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        params = case.params.clone()
        params.seed = 40 + choice.index
        assert ids_of(choice) == expected_tokens(reference, Case(case.prompt_ids, params))


def test_several_prompts_in_one_request(client, reference):
    cases = [text_case(reference, number) for number in range(3)]
    answer = client.completions.create(
        model="tiny",
        prompt=[case.prompt_ids for case in cases],
        max_tokens=24,
        temperature=0,
        extra_body={"return_token_ids": True, "vllm_xargs": {"dynin_block_length": 8}},
    )
    assert [ids_of(choice) for choice in answer.choices] == [
        expected_tokens(reference, case) for case in cases
    ]


def test_stop_strings(client, reference, tokenizer):
    case = text_case(reference, 4, max_tokens=40)
    whole = complete(client, case, extra_body={"ignore_eos": True}).choices[0].text
    stop = whole[5:8]
    answer = complete(client, case, stop=[stop], extra_body={"ignore_eos": True})
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("own", [{}, {"target_token_ids": "infill"}, {"parity": "reference"}])
def test_logprobs_of_completions(client, reference, tokenizer, own):
    """Pinned and left-over slots included: every token heads its own entry."""
    own = dict(own)
    if own.get("target_token_ids"):
        mask = reference.config.vocabulary.mask
        own["target_token_ids"] = tuple([mask] * 5 + [9, 10] + [mask] * 17)
    case = text_case(
        reference, 5, own={"block_length": 8} | own, logprobs=3, temperature=1.0, seed=1
    )
    answer = complete(client, case, logprobs=3, extra_body={"ignore_eos": True})
    choice = answer.choices[0]
    case.params.ignore_eos = True
    assert ids_of(choice) == expected_tokens(reference, case)
    expected = decode(reference, case).logprobs(0, 24).logprobs[:, 0].tolist()
    assert choice.logprobs.token_logprobs == pytest.approx(expected, abs=2e-4)


def test_logprobs_of_chat(client):
    answer = client.chat.completions.create(
        **GOOD["chat"] | {"max_tokens": 12}, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for entry in content:
        assert len(entry.top_logprobs) == 2
        assert entry.logprob <= entry.top_logprobs[0].logprob < 0


def test_an_openai_client_may_send_temperature_and_seed(client):
    """vLLM refuses both for its own diffusion models."""
    options = GOOD["chat"] | {"max_tokens": 30, "temperature": 0.9, "seed": 5}
    first, second = (client.chat.completions.create(**options) for _ in range(2))
    assert first.choices[0].message.content == second.choices[0].message.content


def test_metrics_report_no_drafts(server, client):
    client.completions.create(**GOOD["completions"])
    with server.client() as http:
        text = http.get("/metrics").text
    assert "vllm:request_success_total" in text
    assert "spec_decode" not in text


@pytest.fixture(scope="module")
def good_answer(reference):
    body = GOOD["completions"]
    params = DenoiseParams().to_sampling_params(max_tokens=body["max_tokens"], temperature=0)
    return expected_tokens(reference, Case(body["prompt"], params))


@pytest.mark.parametrize(("route", "body", "words"), MALFORMED.values(), ids=list(MALFORMED))
def test_malformed_requests(server, good_answer, route, body, words):
    """4xx with a message that names value and rule; the next good request is served."""
    with server.client() as http:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = http.post(route, content=content, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:500])
        message = json.dumps(answer.json(), ensure_ascii=False)
        for word in words:
            assert word in message, message
        good = http.post(COMPLETIONS, json=GOOD["completions"] | {"return_token_ids": True})
        assert good.status_code == 200, good.text
        assert good.json()["choices"][0]["token_ids"] == good_answer


def test_there_are_enough_malformed_requests():
    assert len(MALFORMED) >= 60


def test_vllm_bench_serve(server, checkpoint_folder, tmp_path):
    """VLLM's own client, its random data set."""
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve"),
        *("--base-url", server.url, "--model", "tiny", "--tokenizer", str(checkpoint_folder)),
        *("--dataset-name", "random", "--random-input-len", "24", "--random-output-len", "16"),
        *("--num-prompts", "12", "--max-concurrency", "6", "--save-result"),
        *("--result-dir", str(tmp_path), "--result-filename", "result.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["completed"] == 12
    assert result.get("failed", 0) == 0
    assert result["total_output_tokens"] > 0
