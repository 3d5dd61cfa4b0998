"""Requests that say nothing of decoding: the checkpoint does, on every route.

`dynin-tiny` knows digits, and its answers are wrong with the defaults of the family.
"""

from __future__ import annotations

import base64
import io
import wave
from typing import Any

import httpx
import numpy as np
import pytest
from helpers.http_media import wav_of

SAY = {"model": "tiny", "input": "seven three", "voice": "alloy", "response_format": "wav"}
REPORT = {"vllm_xargs": {"dynin_report": True}}
LIST = "Sort these numbers: seven three one"
BLANK = (" ", " \n\t", "\u200b\u2003", "\ufeff")


@pytest.fixture(scope="module")
def http(world):
    with httpx.Client(base_url=world.url, timeout=120) as client:
        yield client


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def heard(http: httpx.Client, data: bytes, **form: Any) -> dict[str, Any]:
    files = {"file": ("speech.wav", io.BytesIO(data))}
    answer = http.post("/v1/audio/transcriptions", files=files, data={"model": "tiny"} | form)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def sound_of(http: httpx.Client, body: dict[str, Any], route: str) -> bytes:
    answer = http.post(route, json=body)
    assert answer.status_code == 200, answer.text
    if route == "/v1/audio/speech":
        return answer.content
    return base64.b64decode(answer.json()["choices"][0]["message"]["audio"]["data"])


def test_speech_is_heard(http):
    assert heard(http, sound_of(http, SAY, "/v1/audio/speech"))["text"] == "seven three"
    body = {"model": "tiny", "modalities": ["audio"], "messages": user("nine one")}
    assert heard(http, sound_of(http, body, "/v1/chat/completions"))["text"] == "nine one"
    old = {"model": "tiny", "messages": user("<|t2s|>seven three"), "additional_information": {}}
    assert heard(http, sound_of(http, old, "/v1/chat/completions"))["text"] == "seven three"


def test_images_take_the_steps_of_the_checkpoint(http):
    body = {"model": "tiny", "prompt": "a seven", "seed": 1} | REPORT

    def steps(**changes: Any) -> int:
        answer = http.post("/v1/images/generations", json=body | changes)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["dynin_report"][0]["steps"])

    assert steps() == 8
    assert steps(quality="high") == 16
    assert steps(num_inference_steps=3) == 3
    shown = [
        line
        for line in http.post(
            "/v1/images/generations", json=body | {"stream": True, "partial_images": 1}
        ).text.splitlines()
        if line.startswith("data:")
    ]
    assert len(shown) == 2


def text_routes(http: httpx.Client) -> dict[str, str]:
    """Route → answer."""
    common = {"model": "tiny"}
    chat = http.post("/v1/chat/completions", json=common | {"messages": user(LIST)}).json()
    other = http.post("/invocations", json=common | {"messages": user(LIST)}).json()
    responses = http.post("/v1/responses", json=common | {"input": LIST}).json()
    return {
        "chat": chat["choices"][0]["message"]["content"],
        "invocations": other["choices"][0]["message"]["content"],
        "responses": responses["output"][-1]["content"][0]["text"],
    }


def test_text_is_greedy_and_short(http):
    answers = text_routes(http)
    assert answers == text_routes(http)
    assert set(answers.values()) == {"one three seven"}, answers
    body = {"model": "tiny", "messages": user(LIST), "ignore_eos": True}
    usage = http.post("/v1/chat/completions", json=body).json()["usage"]
    assert usage["completion_tokens"] == 16
    usage = http.post("/v1/chat/completions", json=body | {"max_tokens": 24}).json()["usage"]
    assert usage["completion_tokens"] == 24
    prompt = "<|startoftext|>user"
    body = {"model": "tiny", "prompt": prompt, "ignore_eos": True}
    assert http.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] == 16


def test_several_answers_differ(http):
    """A greedy default would make them equal, so it gives way where several are asked for."""
    body = {"model": "tiny", "messages": user("hello"), "n": 8, "seed": 0, "ignore_eos": True}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert len({choice["message"]["content"] for choice in answer.json()["choices"]}) > 1


@pytest.mark.parametrize("text", BLANK, ids=[repr(text) for text in BLANK])
def test_there_is_nothing_to_say(http, text):
    chat = {"model": "tiny", "modalities": ["audio"], "messages": user(text)}
    old = {"model": "tiny", "messages": user("<|t2s|>" + text)}
    parts = {"model": "tiny", "modalities": ["audio"]}
    parts |= {"messages": user([{"type": "text", "text": text}])}
    for route, body in (
        ("/v1/audio/speech", SAY | {"input": text}),
        ("/v1/audio/speech", SAY | {"input": text, "stream_format": "sse"}),
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", chat | {"stream": True}),
        ("/v1/chat/completions", parts),
        ("/v1/chat/completions", old),
    ):
        answer = http.post(route, json=body)
        assert answer.status_code == 400, (route, body, answer.text)
        assert "no text to speak" in answer.text


def hiss(decibels: float, seconds: float = 1.0) -> np.ndarray:
    """Noise of so many dB below full scale, root mean square."""
    noise = np.random.default_rng(1).standard_normal(round(seconds * 16_000))
    return np.asarray(noise * 10 ** (decibels / 20), np.float32)


SILENCE = {
    "nothing": np.zeros(16_000, np.float32),
    "hiss": hiss(-66),
    "offset": np.full(16_000, 0.2, np.float32),
    "half a minute of hiss": hiss(-70, 31.0),
}


@pytest.mark.parametrize("samples", SILENCE.values(), ids=list(SILENCE))
def test_silence_is_no_speech(http, samples):
    data = wav_of(samples, 16_000).getvalue()
    found = heard(http, data, response_format="verbose_json")
    assert found["text"] == ""
    assert {segment["no_speech_prob"] for segment in found["segments"]} == {1.0}
    sound = {"data": base64.b64encode(data).decode(), "format": "wav"}
    parts = [{"type": "input_audio", "input_audio": sound}, {"type": "text", "text": "Listen."}]
    for body in (
        {"messages": user(parts)},
        {"messages": user(parts), "stream": True},
        {"messages": user(parts[:1]), "modalities": ["audio"]},
    ):
        answer = http.post("/v1/chat/completions", json={"model": "tiny"} | body)
        assert answer.status_code == 400, answer.text
        assert "nothing to be heard" in answer.text


def test_quiet_speech_is_speech(http):
    """40 dB below what a synthesiser makes."""
    spoken = sound_of(http, SAY, "/v1/audio/speech")
    with wave.open(io.BytesIO(spoken)) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(32768)
    quiet = wav_of(samples * 10 ** (-40 / 20), rate).getvalue()
    assert heard(http, quiet, response_format="verbose_json")["segments"][0]["no_speech_prob"] == 0
