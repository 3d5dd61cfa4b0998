"""A request that is refused costs the next client nothing, who sends the same medium."""

from __future__ import annotations

import base64
import itertools
from typing import Any

import httpx
import numpy as np
import pytest
from helpers.http_media import data_url, file_of, mp4_of, wav_of
from helpers.omni_media import clip, photograph, recording
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

REFUSED: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 3},
    "temperature below 0": {"temperature": -1},
    "max_tokens 0": {"max_tokens": 0},
    "max_tokens too large": {"max_tokens": 10**6},
    "n 0": {"n": 0},
    "n too large": {"n": 65},
    "n greedy": {"n": 2},
    "stop empty": {"stop": [""]},
    "beam search": {"use_beam_search": True, "n": 2},
    "presence_penalty": {"presence_penalty": 3},
    "frequency_penalty": {"frequency_penalty": -3},
    "repetition_penalty": {"repetition_penalty": -1},
    "presence_penalty in range": {"presence_penalty": 0.5},
    "top_p": {"top_p": 0.5, "temperature": 1},
    "top_p out of range": {"top_p": 2},
    "top_k": {"top_k": 4, "temperature": 1},
    "min_p": {"min_p": 2},
    "min_tokens": {"min_tokens": 4},
    "logprobs": {"logprobs": True, "top_logprobs": 50},
    "prompt_logprobs": {"prompt_logprobs": 1},
    "logit_bias": {"logit_bias": {"5": 200}},
    "bad_words": {"bad_words": ["the"]},
    "allowed_token_ids": {"allowed_token_ids": []},
    "stop_token_ids": {"stop_token_ids": [10**7]},
    "seed": {"seed": 2**70},
    "JSON": {"response_format": {"type": "json_object"}},
    "grammar": {"structured_outputs": {"regex": "[a"}},
    "tools": {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": "required",
    },
    "priority": {"priority": 5},
    "thinking budget": {"thinking_token_budget": 4},
    "truncation": {"truncate_prompt_tokens": 4},
    "template": {"chat_template": "{{ 1 }}"},
    "model": {"model": "other"},
    "steps": {"vllm_xargs": {"dynin_steps": 0}},
    "misspelt": {"vllm_xargs": {"dynin_stepz": 1}},
    "foreign": {"vllm_xargs": {"dynin_resolution": 64}},
    "internal": {"vllm_xargs": {"_dynin_plan": "x"}},
    "guided without room": {"vllm_xargs": {"dynin_cfg_scale": 2}, "max_tokens": 1_500},
    "another task": {"vllm_xargs": {"dynin_task": "t2t"}},
    "resolution": {"mm_processor_kwargs": {"resolution": 17}},
    "text beside": {"messages": "mask"},
}
# Whether something is refused does not depend on the medium, where the fault was: after rendering.
FOR_EVERY_KIND = ("temperature", "max_tokens 0", "n greedy", "stop empty", "beam search", "steps")
GOOD = {"model": "tiny", "temperature": 0, "max_tokens": 4, "vllm_xargs": {"dynin_steps": 1}}

_fresh = itertools.count(1_000)


def fresh_part(kind: str) -> dict[str, Any]:
    """A medium that nobody has sent before."""
    number = next(_fresh)
    if kind == "image":
        url = data_url(file_of(photograph(number)).getvalue(), "image/png")
        return {"type": "image_url", "image_url": {"url": url}}
    if kind == "video":
        frames = np.roll(clip(5), number, axis=2)
        frames[:, 0, 0] = number % 251
        return {"type": "video_url", "video_url": {"url": data_url(mp4_of(frames), "video/mp4")}}
    samples, rate = recording(seconds=1.0)
    data = wav_of(np.roll(samples, number), rate).getvalue()
    sound = {"data": base64.b64encode(data).decode(), "format": "wav"}
    return {"type": "input_audio", "input_audio": sound}


CASES = [
    ("image" if name not in FOR_EVERY_KIND else kind, name)
    for name in REFUSED
    for kind in ("image", "sound", "video")
    if kind == "image" or name in FOR_EVERY_KIND
]


@pytest.fixture(scope="module")
def http(routes):
    with routes.client() as client:
        yield client


def ask(http: httpx.Client, part: dict[str, Any], **changes: Any) -> httpx.Response:
    text = "What is this?"
    if changes.get("messages") == "mask":
        del changes["messages"]
        text = "<|mdm_mask|>"
    content = [part, {"type": "text", "text": text}]
    body = GOOD | {"messages": [{"role": "user", "content": content}]} | changes
    return http.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}-{name}" for kind, name in CASES])
def test_the_next_request_with_the_same_medium(http, kind, name):
    part = fresh_part(kind)
    bad = ask(http, part, **REFUSED[name])
    assert 400 <= bad.status_code < 500, bad.text
    good = ask(http, part)
    assert good.status_code == 200, good.text


def test_a_name_is_no_medium(http):
    """Clients may name their media; nobody gets what another sent under the same name."""
    mine, theirs = fresh_part("image"), fresh_part("image")
    alone = ask(http, mine).json()["choices"][0]["message"]["content"]
    ask(http, theirs | {"uuid": "logo"})
    named = ask(http, mine | {"uuid": "logo"})
    assert named.json()["choices"][0]["message"]["content"] == alone
    absent = ask(http, {"type": "image_url", "image_url": None, "uuid": "logo"})
    assert 400 <= absent.status_code < 500, absent.text


def test_in_python(local):
    """The same engine class, without a server."""
    image = photograph(next(_fresh))
    content = [{"type": "image_pil", "image_pil": image}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    good = SamplingParams(temperature=0, max_tokens=4, extra_args={"dynin_steps": 1})
    bad = SamplingParams(temperature=0, max_tokens=4, extra_args={"dynin_steps": 0})
    with pytest.raises(VLLMValidationError):
        local.chat(messages, bad, use_tqdm=False)
    (output,) = local.chat(messages, good, use_tqdm=False)
    assert output.finished
