"""Many clients at once, and clients that go away."""

import asyncio

import openai
import pytest
from helpers.gone_clients import leave_while_it_runs, wait_until_idle
from helpers.http_media import data_url, expected, file_of, image_of, wav_of
from helpers.omni_media import photograph, recording

from vllm_dynin import (
    Chat,
    DenoiseParams,
    EditImage,
    SpeechToText,
    TextToImage,
    TextToSpeech,
    TextToText,
)

PHOTO = file_of(photograph()).getvalue()
SPOKEN = wav_of(*recording(seconds=0.8)).getvalue()
STEPS = {"dynin_steps": 6}
OPTIONS = DenoiseParams(steps=6)


class Mixed:
    """The same requests, over HTTP and in this process, with seeds of their own."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client

    async def chat(self, seed):
        answer = await self._client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "What does the speaker say?"}],
            seed=seed,
            temperature=1.0,
            max_tokens=32,
            extra_body={"vllm_xargs": STEPS},
        )
        return answer.choices[0].message.content

    async def look(self, seed):
        url = {"url": data_url(PHOTO, "image/png")}
        parts = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "What is it?"}]
        answer = await self._client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": parts}],
            seed=seed,
            temperature=1.0,
            max_tokens=32,
            extra_body={"vllm_xargs": STEPS},
        )
        return answer.choices[0].message.content

    async def draw(self, seed):
        answer = await self._client.images.generate(
            model="tiny", prompt="a cat", extra_body={"seed": seed, "num_inference_steps": 6}
        )
        return image_of(answer.data[0].b64_json).tobytes()

    async def edit(self, seed):
        answer = await self._client.images.edit(
            model="tiny",
            prompt="night",
            image=("cat.png", PHOTO),
            extra_body={"seed": seed, "num_inference_steps": 6},
        )
        return image_of(answer.data[0].b64_json).tobytes()

    async def say(self, seed):
        answer = await self._client.audio.speech.create(
            model="tiny",
            input="Hello.",
            voice="female",
            response_format="flac",
            extra_body={"seed": seed, "max_tokens": 32, "vllm_xargs": STEPS},
        )
        return answer.content

    async def write(self, seed):
        answer = await self._client.audio.transcriptions.create(
            model="tiny",
            file=("speech.wav", SPOKEN),
            temperature=1.0,
            extra_body={
                "seed": seed,
                "max_completion_tokens": 32,
                "vllm_xargs": '{"dynin_steps": 6}',
            },
        )
        return answer.text


def local_request(kind, seed):
    text = {"options": OPTIONS, "seed": seed, "temperature": 1.0, "max_tokens": 32}
    media = {"options": OPTIONS, "seed": seed}
    if kind == "chat":
        return TextToText("What does the speaker say?", **text)
    if kind == "look":
        parts = [{"type": "image", "image": PHOTO}, {"type": "text", "text": "What is it?"}]
        return Chat([{"role": "user", "content": parts}], **text)
    if kind == "draw":
        return TextToImage("a cat", **media)
    if kind == "edit":
        return EditImage(PHOTO, "night", **media)
    if kind == "say":
        style = DenoiseParams(steps=6, style="gender-female")
        return TextToSpeech("Hello.", options=style, seed=seed, max_tokens=32)
    return SpeechToText(SPOKEN, **text)


def comparable(kind, result):
    if kind in ("draw", "edit"):
        return result.image.tobytes()
    if kind == "say":
        return result.audio.to_bytes("flac")
    return result.text.strip() if kind == "write" else result.text


def test_32_mixed_clients_at_once(routes, local):
    kinds = ("chat", "look", "draw", "edit", "say", "write")
    mix = [(kinds[index % len(kinds)], 100 + index) for index in range(32)]

    async def run():
        client = openai.AsyncOpenAI(
            base_url=f"{routes.url}/v1", api_key="x", max_retries=0, timeout=120
        )
        async with client:
            mixed = Mixed(client)
            return await asyncio.gather(*(getattr(mixed, kind)(seed) for kind, seed in mix))

    found = asyncio.run(run())
    wanted = expected(local, [local_request(kind, seed) for kind, seed in mix])
    for (kind, seed), answer, result in zip(mix, found, wanted, strict=True):
        assert answer == comparable(kind, result), (kind, seed)
    wait_until_idle(routes)


LONG_TEXT = {"model": "tiny", "max_tokens": 1_500, "ignore_eos": True, "temperature": 0}
LONG_SPEECH = {"model": "tiny", "input": "Hello.", "max_tokens": 700, "num_inference_steps": 700}
SLOW = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]} | LONG_TEXT),
    "streamed chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "x"}], "stream": True} | LONG_TEXT,
    ),
    "completion": ("/v1/completions", {"prompt": "x"} | LONG_TEXT),
    "image": (
        "/v1/images/generations",
        {"model": "tiny", "prompt": "x", "n": 10, "num_inference_steps": 250},
    ),
    "streamed image": (
        "/v1/images/generations",
        {
            "model": "tiny",
            "prompt": "x",
            "stream": True,
            "partial_images": 3,
            "size": "96x96",
            "num_inference_steps": 500,
        },
    ),
    "speech": ("/v1/audio/speech", LONG_SPEECH),
    "spoken chat": (
        "/v1/chat/completions",
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Hello."}],
            "modalities": ["audio"],
            "max_tokens": 700,
            "num_inference_steps": 700,
        },
    ),
}


@pytest.mark.parametrize(("route", "body"), SLOW.values(), ids=list(SLOW))
def test_a_client_that_leaves_frees_slot_and_blocks(routes, route, body):
    finished = 'vllm:request_success_total{engine="0",finished_reason="length"'
    before = counted(routes, finished)
    leave_while_it_runs(routes, route, body)
    wait_until_idle(routes)
    assert counted(routes, finished) == before, "it ran to its end"


def counted(server, start):
    with server.client() as http:
        lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))
