"""Plain `vllm serve`: every kind of input, with nothing else set, over a real socket."""

import base64

import openai
import pytest
from helpers.http_media import data_url, expected, file_of, message_of, mp4_of, wav_of
from helpers.omni_media import clip, photograph, recording
from helpers.server import serve

from vllm_dynin import Chat, DenoiseParams

PHOTO = file_of(photograph()).getvalue()
SPOKEN = wav_of(*recording(seconds=1.0)).getvalue()
VIDEO = mp4_of(clip())
OPTIONS = DenoiseParams(steps=8)
XARGS = {"vllm_xargs": {"dynin_steps": 8}}

# Kind → the part as a client writes it, and as `vllm_dynin.Chat` does.
PARTS = {
    "image_url": (
        {"type": "image_url", "image_url": {"url": data_url(PHOTO, "image/png")}},
        {"type": "image", "image": PHOTO},
    ),
    "video_url": (
        {"type": "video_url", "video_url": {"url": data_url(VIDEO, "video/mp4")}},
        {"type": "video", "video": VIDEO},
    ),
    "input_audio": (
        {
            "type": "input_audio",
            "input_audio": {"data": base64.b64encode(SPOKEN).decode(), "format": "wav"},
        },
        {"type": "audio", "audio": SPOKEN},
    ),
    "audio_url": (
        {"type": "audio_url", "audio_url": {"url": data_url(SPOKEN, "audio/wav")}},
        {"type": "audio", "audio": SPOKEN},
    ),
}
TEXT = {"type": "text", "text": "What is this?"}


@pytest.fixture(scope="module")
def stock(stand_in, tmp_path_factory):
    log = tmp_path_factory.mktemp("stock") / "log.txt"
    flags = ("--max-model-len", "1024", "--num-gpu-blocks-override", "256")
    with serve(stand_in, log, *flags, "--reasoning-parser", "dynin") as server:
        yield server


@pytest.fixture(scope="module")
def client(stock):
    return openai.OpenAI(base_url=f"{stock.url}/v1", api_key="none", max_retries=0, timeout=120)


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def chat(client, messages, **body):
    common = {"model": "tiny", "seed": 3, "temperature": 1.0, "max_completion_tokens": 32}
    extra = XARGS | body.pop("extra_body", {})
    return client.chat.completions.create(messages=messages, **common | body, extra_body=extra)


def local_chat(local, *parts, **changes):
    request = Chat(user(*parts), options=OPTIONS, seed=3, temperature=1.0, max_tokens=32, **changes)
    (result,) = expected(local, [request])
    return result


@pytest.mark.parametrize("kind", PARTS)
def test_media_in_chat(client, local, kind):
    sent, opened = PARTS[kind]
    answer = chat(client, user(sent, TEXT))
    wanted = local_chat(local, opened, TEXT)
    assert answer.choices[0].message.content == wanted.text
    assert answer.usage.completion_tokens == len(wanted.token_ids)
    assert answer.choices[0].finish_reason == wanted.finish_reason
    assert answer.usage.prompt_tokens > 60  # the codes are counted


def test_streamed_chat_with_media_adds_up(client):
    sent, _ = PARTS["image_url"]
    body = {"max_completion_tokens": 64, "extra_body": {"ignore_eos": True}}
    whole = chat(client, user(sent, TEXT), **body)
    chunks = list(
        chat(client, user(sent, TEXT), stream=True, stream_options={"include_usage": True}, **body)
    )
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(deltas) == whole.choices[0].message.content
    assert sum(map(bool, deltas)) > 1
    assert chunks[-1].usage == whole.usage


def test_several_media_and_turns(client, local):
    image, opened = PARTS["image_url"]
    messages = [
        *user(image, image, TEXT),
        {"role": "assistant", "content": "Two cats."},
        *user({"type": "text", "text": "And now?"}),
    ]
    request = Chat(
        [*user(opened, opened, TEXT), *messages[1:]],
        options=OPTIONS,
        seed=3,
        temperature=1.0,
        max_tokens=32,
    )
    (wanted,) = expected(local, [request])
    assert chat(client, messages).choices[0].message.content == wanted.text


def test_n_seeds_and_logprobs(client):
    sent, _ = PARTS["image_url"]
    answer = chat(client, user(sent, TEXT), n=2, logprobs=True, top_logprobs=2)
    again = chat(client, user(sent, TEXT), seed=4)
    first, second = answer.choices
    assert second.message.content == again.choices[0].message.content
    assert first.message.content != second.message.content
    tokens = [len(choice.logprobs.content) for choice in answer.choices]
    assert sum(tokens) == answer.usage.completion_tokens


def test_responses(client, local):
    url = PARTS["image_url"][0]["image_url"]["url"]
    parts = [
        {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "input_text", "text": TEXT["text"]},
    ]
    answer = client.responses.create(
        model="tiny",
        input=[{"role": "user", "content": parts}],
        temperature=0,
        max_output_tokens=32,
        extra_body=XARGS,
    )
    plain = client.responses.create(
        model="tiny", input=TEXT["text"], temperature=0, max_output_tokens=32, extra_body=XARGS
    )
    (wanted,) = expected(
        local, [Chat(user(PARTS["image_url"][1], TEXT), options=OPTIONS, max_tokens=32)]
    )
    assert answer.output_text == wanted.text
    assert answer.usage.output_tokens == len(wanted.token_ids)
    (wanted,) = expected(local, [Chat(user(TEXT), options=OPTIONS, max_tokens=32)])
    assert plain.output_text == wanted.text
    events = list(
        client.responses.create(
            model="tiny",
            input=TEXT["text"],
            temperature=0,
            max_output_tokens=32,
            stream=True,
            extra_body=XARGS,
        )
    )
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == wanted.text


def test_completions_and_tokenize(stock, client, local):
    tokenizer = local.get_tokenizer()
    with stock.client() as http:
        found = http.post("/tokenize", json={"model": "tiny", "prompt": "a cat"}).json()
        assert found["tokens"] == tokenizer.encode("a cat")
        back = http.post("/detokenize", json={"model": "tiny", "tokens": found["tokens"]}).json()
        rendered = http.post(
            "/tokenize", json={"model": "tiny", "messages": user(TEXT), "return_token_strs": True}
        ).json()
    assert back["prompt"] == "a cat"
    prompt = tokenizer.apply_chat_template(user(TEXT), add_generation_prompt=True, tokenize=False)
    assert rendered["tokens"] == tokenizer.encode(prompt)
    answer = client.completions.create(
        model="tiny", prompt=prompt, temperature=0, max_tokens=32, extra_body=XARGS
    )
    (wanted,) = expected(local, [Chat(user(TEXT), options=OPTIONS, max_tokens=32)])
    assert answer.choices[0].text == wanted.text
    assert answer.usage.prompt_tokens == len(rendered["tokens"])


def test_reasoning_has_a_field_of_its_own(client, local):
    thinking = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}
    answer = chat(client, user(TEXT), **thinking)
    wanted = local_chat(local, TEXT, thinking=True)
    message = answer.choices[0].message
    assert message.model_extra["reasoning"] == wanted.reasoning
    assert (message.content or "") == wanted.text
    chunks = chat(client, user(TEXT), stream=True, **thinking)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    reasoning = [(delta.model_extra or {}).get("reasoning") or "" for delta in deltas]
    assert "".join(reasoning) == wanted.reasoning


def test_usage_counts_the_conditional_prompt_only(client):
    sent, _ = PARTS["image_url"]
    plain = chat(client, user(sent, TEXT))
    guided = chat(
        client,
        user(sent, TEXT),
        extra_body={"vllm_xargs": {"dynin_steps": 8, "dynin_cfg_scale": 1.5}},
    )
    assert plain.usage.prompt_tokens == guided.usage.prompt_tokens


def test_our_routes_are_off(stock):
    with stock.client() as http:
        for route in ("/v1/images/generations", "/v1/audio/speech", "/v1/audio/transcriptions"):
            assert http.post(route, json={"prompt": "x"}).status_code == 404


BAD_PARTS = {
    "broken image": {
        "type": "image_url",
        "image_url": {"url": data_url(b"not an image", "image/png")},
    },
    "broken sound": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    "broken video": {"type": "video_url", "video_url": {"url": data_url(b"no", "video/mp4")}},
    "no base64": {"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}},
    "unknown part": {"type": "smell", "smell": "x"},
}


@pytest.mark.parametrize("part", BAD_PARTS.values(), ids=list(BAD_PARTS))
def test_bad_media(client, part):
    with pytest.raises(openai.APIStatusError) as error:
        chat(client, user(part, TEXT))
    assert 400 <= error.value.status_code < 500, message_of(error)
    assert chat(client, user(TEXT)).choices  # the engine is alive
