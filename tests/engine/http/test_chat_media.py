"""Chat completions whose answers are images or speech, and clients of vllm-omni 0.28."""

import asyncio
import base64
import io

import httpx
import numpy as np
import openai
import pytest
import soundfile
from helpers.http_media import data_url, expected, file_of, image_of, message_of, mp4_of, wav_of
from helpers.omni_media import clip, photograph, recording

from vllm_dynin import (
    DenoiseParams,
    EditImage,
    MixedAnswer,
    SpeechToSpeech,
    TextToImage,
    TextToSpeech,
    VideoToSpeech,
)

PHOTO = file_of(photograph()).getvalue()
SPOKEN = wav_of(*recording(seconds=1.0)).getvalue()
VIDEO = mp4_of(clip())
FEW = {"num_inference_steps": 4}
OPTIONS = DenoiseParams(steps=4)


def user(*parts):
    return [{"role": "user", "content": parts[0] if isinstance(parts[0], str) else list(parts)}]


def text(words):
    return {"type": "text", "text": words}


IMAGE_PART = {"type": "image_url", "image_url": {"url": data_url(PHOTO, "image/png")}}
AUDIO_PART = {
    "type": "input_audio",
    "input_audio": {"data": base64.b64encode(SPOKEN).decode(), "format": "wav"},
}
VIDEO_PART = {"type": "video_url", "video_url": {"url": data_url(VIDEO, "video/mp4")}}


def ask(api, messages, modalities, **body):
    """A completion; what the client's types do not know goes into `extra_body`."""
    extra = body.pop("extra_body", {})
    if modalities is not None:
        extra = {"modalities": modalities} | extra
    return api.chat.completions.create(model="tiny", messages=messages, extra_body=extra, **body)


def image_in(message):
    (part,) = message.model_extra["images"]
    assert part["type"] == "image_url"
    return image_of(part["image_url"]["url"].removeprefix("data:image/png;base64,"))


def samples_in(message):
    return soundfile.read(io.BytesIO(base64.b64decode(message.audio.data)), dtype="float32")[0]


def assert_same_sound(samples, sound):
    np.testing.assert_allclose(samples, sound.waveform.clip(-1, 1), atol=1 / 32_000)


def test_images_from_text_and_from_images(api, local):
    body = {"seed": 3, "n": 2}
    answer = ask(api, user("a cat"), ["image"], extra_body=FEW | {"size": "64x64"}, **body)
    edit = ask(api, user(IMAGE_PART, text("make it night")), ["image"], extra_body=FEW, seed=3)
    mixed = ask(
        api,
        user(IMAGE_PART, text("draw it, and say what changed")),
        ["text", "image"],
        extra_body=FEW,
        seed=3,
        max_completion_tokens=32,
    )
    square = DenoiseParams(steps=4, resolution=64)
    wanted = expected(
        local,
        [
            TextToImage("a cat", options=square, seed=3),
            TextToImage("a cat", options=square, seed=4),
            EditImage([PHOTO], "make it night", options=OPTIONS, seed=3),
            MixedAnswer(
                [PHOTO],
                "draw it, and say what changed",
                options=DenoiseParams(steps=4, text_tokens=32),
                seed=3,
            ),
        ],
    )
    messages = [choice.message for choice in (*answer.choices, *edit.choices, *mixed.choices)]
    for message, result in zip(messages, wanted, strict=True):
        assert image_in(message).tobytes() == result.image.tobytes()
        assert message.content == result.text
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert answer.usage.completion_tokens == sum(len(result.token_ids) for result in wanted[:2])
    assert wanted[3].text is not None


def test_speech_from_text_speech_and_video(api, local):
    body = {"seed": 4, "max_completion_tokens": 48}
    audio = {"voice": "onyx", "format": "wav"}
    extra = {"num_inference_steps": 16, "vllm_xargs": {"dynin_guidance_scale": 0}}
    spoken = [
        ask(
            api,
            user("Good morning to you."),
            ["text", "audio"],
            audio=audio,
            extra_body=extra,
            **body,
        ),
        ask(api, user(AUDIO_PART), ["audio"], audio=audio, extra_body=extra, **body),
        ask(
            api,
            user(VIDEO_PART, text("What happens?")),
            ["audio"],
            audio=audio,
            extra_body=extra,
            **body,
        ),
    ]
    options = DenoiseParams(
        steps=16, guidance_scale=0, style="gender-male_emotion-neutral_speed-normal_pitch-low"
    )
    common = {"options": options, "seed": 4, "max_tokens": 48}
    wanted = expected(
        local,
        [
            TextToSpeech("Good morning to you.", **common),
            SpeechToSpeech(SPOKEN, **common),
            VideoToSpeech(VIDEO, "What happens?", **common),
        ],
    )
    for answer, result in zip(spoken, wanted, strict=True):
        message = answer.choices[0].message
        assert message.content is None
        assert_same_sound(samples_in(message), result.audio)
        assert answer.choices[0].finish_reason == result.finish_reason
    assert spoken[0].choices[0].message.audio.transcript == "Good morning to you."
    assert spoken[1].choices[0].message.audio.transcript == ""


def test_streamed_media(api, local):
    chunks = list(
        ask(
            api,
            user("a cat"),
            ["image"],
            seed=3,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"num_inference_steps": 8, "partial_images": 2},
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    parts = [part for delta in deltas for part in (delta.model_extra or {}).get("images", ())]
    assert [part.get("is_partial", False) for part in parts] == [True, True, False]
    final = image_of(parts[-1]["image_url"]["url"].split(",")[1])
    (wanted,) = expected(local, [TextToImage("a cat", options=DenoiseParams(steps=8), seed=3)])
    assert final.tobytes() == wanted.image.tobytes()
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == len(wanted.token_ids)


def test_a_question_in_text_is_answered_by_vllm(api):
    """With and without `modalities`, in the same words."""
    body = {"seed": 1, "temperature": 1.0, "max_completion_tokens": 32}
    messages = user(IMAGE_PART, text("What is this?"))
    plain, asked = ask(api, messages, None, **body), ask(api, messages, ["text"], **body)
    assert plain.choices[0].message.content == asked.choices[0].message.content
    assert plain.usage == asked.usage


def test_clients_of_vllm_omni(routes, local):
    """Trigger tokens and scalar `additional_information`, answered in the shapes of 0.28."""
    system = {"role": "system", "content": "You are helpful."}
    information = {
        "timesteps": [4],
        "guidance_scale": 2.0,
        "image_resolution": 64,
        "mask_token_id": stand_in_vocabulary(local).mask,
    }
    speech = {"steps": 16, "cfg_scale": 0.0, "t2s_token_length": 48, "seed": 4}
    with routes.client() as http:

        def post(**body):
            answer = http.post("/v1/chat/completions", json={"model": "tiny"} | body)
            assert answer.status_code == 200, answer.text
            return answer.json()["choices"][0]["message"]

        image = post(
            messages=[system, *user("<|t2i|>a  cat <|soi|><|image|><|eoi|>")],
            modalities=["image"],
            additional_information=information | {"seed": 3},
        )
        edit = post(
            messages=user(IMAGE_PART, text("<|i2i|> make it night")),
            additional_information={"steps": 4, "seed": 3},
        )
        sound = post(messages=user("<|t2s|>Good morning to you."), additional_information=speech)
        written = post(
            messages=user("What is two and two?"),
            additional_information={
                "task": "mmu",
                "max_new_tokens": 16,
                "steps": 8,
                "temperature": 0.0,
            },
        )
        plain = post(
            messages=user("What is two and two?"),
            max_tokens=16,
            temperature=0,
            vllm_xargs={"dynin_steps": 8},
        )
    wanted = expected(
        local,
        [
            TextToImage(
                "a cat",
                options=DenoiseParams(steps=4, guidance_scale=2.0, resolution=64),
                seed=3,
            ),
            EditImage([PHOTO], "make it night", options=OPTIONS, seed=3),
            TextToSpeech(
                "Good morning to you.",
                options=DenoiseParams(steps=16, cfg_scale=0.0),
                max_tokens=48,
                seed=4,
            ),
        ],
    )
    for message, result in zip((image, edit), wanted, strict=False):
        (part,) = message["content"]
        found = image_of(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
        assert found.tobytes() == result.image.tobytes()
    data = base64.b64decode(sound["audio"]["data"])
    samples = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    assert_same_sound(samples, wanted[2].audio)
    assert set(sound["audio"]) == {"id", "data", "expires_at", "transcript"}
    assert written["content"] == plain["content"]


def stand_in_vocabulary(local):
    return local.llm_engine.vllm_config.model_config.hf_config.vocabulary


def test_streamed_shapes_of_vllm_omni(routes):
    body = {"model": "tiny", "stream": True, "messages": user("<|t2i|>a cat")} | FEW
    with httpx.Client(base_url=routes.url, timeout=60) as http:
        lines = http.post("/v1/chat/completions", json=body).text.splitlines()
    import json

    assert lines[-2] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines[:-2] if line.startswith("data: ")]
    assert {chunk["modality"] for chunk in chunks} == {"image"}
    (content,) = [
        chunk["choices"][0]["delta"]["content"]
        for chunk in chunks
        if chunk["choices"][0]["delta"].get("content")
    ]
    assert image_of(content[0]["image_url"]["url"].split(",")[1]).size == (64, 64)


CAT = user("a cat")
BAD = {
    "modality": ({"modalities": ["smell"]}, ("smell",)),
    "both": ({"modalities": ["image", "audio"]}, ("image and audio", "two requests")),
    "audio without modality": ({"audio": {"voice": "onyx", "format": "wav"}}, ("modalities",)),
    "history": (
        {"modalities": ["image"], "messages": [{"role": "system", "content": "x"}, *CAT]},
        ("1 messages", "leave the others out"),
    ),
    "assistant last": (
        {"modalities": ["image"], "messages": [{"role": "assistant", "content": "x"}]},
        ("assistant",),
    ),
    "image to speech": (
        {"modalities": ["audio"], "messages": user(IMAGE_PART, text("say it"))},
        ("image to audio",),
    ),
    "audio to image": (
        {"modalities": ["image"], "messages": user(AUDIO_PART)},
        ("audio to image",),
    ),
    "text beside speech": (
        {"modalities": ["audio"], "messages": user(AUDIO_PART, text("and this"))},
        ("leave the text out",),
    ),
    "nothing to say": ({"modalities": ["audio"], "messages": user(" ")}, ("no text to speak",)),
    "file url": (
        {
            "modalities": ["image"],
            "messages": user({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}),
        },
        ("file:///etc/passwd", "http"),
    ),
    "no base64": (
        {
            "modalities": ["image"],
            "messages": user({"type": "image_url", "image_url": {"url": "data:image/png,abc"}}),
        },
        ("base64",),
    ),
    "no image": (
        {
            "modalities": ["image"],
            "messages": user(
                {"type": "image_url", "image_url": {"url": data_url(b"abc", "image/png")}}
            ),
        },
        ("image",),
    ),
    "tools": (
        {
            "modalities": ["image"],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        },
        ("tool_choice", "leave it out"),
    ),
    "stop": ({"modalities": ["image"], "stop": ["x"]}, ("stop", "leave it out")),
    "top_p": ({"modalities": ["image"], "top_p": 0.5}, ("top_p=0.5", "leave it out")),
    "unknown": ({"modalities": ["image"], "height": 64}, ("height=64", "leave it out")),
    "n": ({"modalities": ["image"], "n": 1000}, ("n=1000", "10")),
    "size for speech": ({"modalities": ["audio"], "size": "64x64"}, ("size", "images")),
    "voice": (
        {"modalities": ["audio"], "audio": {"voice": "bob", "format": "wav"}},
        ("bob", "alloy"),
    ),
    "trigger against modality": (
        {"modalities": ["audio"], "messages": user("<|t2i|>a cat")},
        ("t2i", "image"),
    ),
    "trigger without image": ({"messages": user("<|i2i|>x")}, ("0 image", "1 to 16")),
    "path key": (
        {"additional_information": {"dynin_config_path": "/etc/passwd"}},
        ("dynin_config_path", "command line"),
    ),
    "codec path": (
        {"additional_information": {"vq_model_image_path": "x"}},
        ("vq_model_image_path", "leave it out"),
    ),
    "remote code": ({"additional_information": {"uni_prompting": "x"}}, ("uni_prompting",)),
    "output file": ({"additional_information": {"output_wav_file": "x"}}, ("output_wav_file",)),
    "path value": ({"additional_information": {"condition": "../x"}}, ("../x", "path")),
    "no scalar": ({"additional_information": {"steps": [1, 2]}}, ("steps", "list")),
    "unknown key": ({"additional_information": {"thinking": 1}}, ("thinking", "keys are")),
    "wrong fact": ({"additional_information": {"mask_id": 1}}, ("mask_id=1",)),
    "wrong type": ({"additional_information": {"max_new_tokens": "many"}}, ("max_tokens",)),
}


@pytest.mark.parametrize(("body", "words"), BAD.values(), ids=list(BAD))
def test_bad_requests(routes, body, words):
    with routes.client() as http:
        answer = http.post("/v1/chat/completions", json={"model": "tiny", "messages": CAT} | body)
    assert answer.status_code == 400, answer.text
    for word in words:
        assert word in answer.json()["error"]["message"], answer.text


def test_unreachable_urls_are_the_clients_affair(api):
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/cat.png"}}
    with pytest.raises(openai.APIStatusError) as error:
        ask(api, user(part, text("x")), ["image"])
    assert 400 <= error.value.status_code < 500
    assert "127.0.0.1" in message_of(error)


def test_several_at_once(routes):
    async def run():
        client = openai.AsyncOpenAI(base_url=f"{routes.url}/v1", api_key="x", max_retries=0)
        async with client:
            same = (
                client.chat.completions.create(
                    model="tiny",
                    messages=CAT,
                    seed=3,
                    extra_body={"modalities": ["image"]} | FEW,
                )
                for _ in range(8)
            )
            return await asyncio.gather(*same)

    images = {image_in(answer.choices[0].message).tobytes() for answer in asyncio.run(run())}
    assert len(images) == 1
