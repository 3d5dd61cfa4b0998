"""Pictures as people send them, on every way in, judged by the digit that they show.

`helpers/picture_variety.py` has the files. The other side of it, files that no viewer shows, is
refused alike everywhere, and nobody else notices.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from helpers.http_media import image_of
from helpers.picture_variety import (
    SHOWN,
    URLS,
    Picture,
    base64_of,
    encoded,
    original,
    pictures,
)
from PIL import Image, ImageOps

import vllm_dynin as dynin
from vllm_dynin.processors import chat
from vllm_dynin.training_ext.tiny import digits
from vllm_dynin.training_ext.tiny.words import DIGIT_WORDS

QUESTION = "Which digit is this?"
CLIENTS = 16
ANSWER = {"temperature": 0, "max_tokens": 16}

pytestmark = pytest.mark.slow  # `make test` has test_picture_variety.py and test_picture_routes.py

REFUSED = {
    "text": (b"hello, this is no picture" * 20, "not a readable image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a readable image"),
    "half a png": (encoded(original(SHOWN[0], 640), "PNG")[:900], "damaged"),
    "head of a jpeg": (encoded(original(SHOWN[0]), "JPEG")[:200], "image"),
    "head of a png": (encoded(original(SHOWN[0]), "PNG")[:40], "image"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(100), "export the photo as JPEG"),
    "too long": (encoded(Image.new("1", (3000, 20)), "PNG"), "aspect ratio"),
    "too large": (encoded(Image.new("1", (15_100, 15_000)), "PNG"), "max_source_pixels"),
}


@pytest.fixture(scope="module")
def http(tiny):
    with httpx.Client(base_url=tiny.url, timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def shown() -> list[Picture]:
    plain = [Picture(f"plain {i}", i, encoded(original(i), "PNG")) for i in SHOWN]
    return [*plain, *pictures()]


def each(work: Callable[[Any], Any], items: Any) -> list[Any]:
    """Many clients at once."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        return list(clients.map(work, items))


def url_of(data: bytes) -> str:
    return URLS["plain"](base64_of(data))


def asked(url: str) -> list[dict[str, Any]]:
    picture = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": QUESTION}]}]


def chat_answer(http: httpx.Client, url: str) -> str:
    answer = http.post("/v1/chat/completions", json={"messages": asked(url)} | ANSWER)
    return answer.json()["choices"][0]["message"]["content"] if answer.is_success else answer.text


def responses_answer(http: httpx.Client, url: str) -> str:
    content = [
        {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "input_text", "text": QUESTION},
    ]
    body = {"input": [{"role": "user", "content": content}], "temperature": 0,
            "max_output_tokens": 16}  # fmt: skip
    answer = http.post("/v1/responses", json=body)
    if not answer.is_success:
        return answer.text
    (message,) = (item for item in answer.json()["output"] if item["type"] == "message")
    return str(message["content"][0]["text"])


def edited(http: httpx.Client, data: bytes) -> str:
    """The picture inverted, in base64; or the refusal."""
    form = {"prompt": "invert the picture", "temperature": 0, "num_inference_steps": 4}
    answer = http.post("/v1/images/edits", data=form, files={"image": ("a.png", io.BytesIO(data))})
    return answer.json()["data"][0]["b64_json"] if answer.is_success else answer.text


def edited_in_chat(http: httpx.Client, url: str) -> str:
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "invert the picture"},
    ]
    body = {"modalities": ["image"], "temperature": 0, "num_inference_steps": 4,
            "messages": [{"role": "user", "content": content}]}  # fmt: skip
    answer = http.post("/v1/chat/completions", json=body)
    if not answer.is_success:
        return answer.text
    found = answer.json()["choices"][0]["message"]["images"][0]["image_url"]["url"]
    return str(found.partition(",")[2])


def wrong(pictures: list[Picture], answers: list[str]) -> dict[str, str]:
    return {
        picture.name: answer[:200]
        for picture, answer in zip(pictures, answers, strict=True)
        if answer.strip() != picture.word
    }


def test_there_are_enough(shown):
    assert len(shown) >= 250 and len({picture.name for picture in shown}) == len(shown)
    assert len({picture.word for picture in shown}) >= 5


def test_chat(http, shown):
    answers = each(lambda picture: chat_answer(http, url_of(picture.data)), shown)
    assert wrong(shown, answers) == {}


def test_python(tiny_llm, shown):
    requests = [dynin.ImageToText(picture.data, QUESTION, max_tokens=16) for picture in shown]
    answers = dynin.generate(tiny_llm, requests, use_tqdm=False)
    assert wrong(shown, [answer.text or "" for answer in answers]) == {}


def test_edits(http, shown):
    """Every file is to the model what the plain picture is."""
    answers = each(lambda picture: edited(http, picture.data), shown)
    plain = dict(zip(SHOWN, answers, strict=False))
    for index, answer in plain.items():
        cells = [
            np.asarray(picture.convert("L").resize((8, 8), Image.Resampling.BOX)) > 127
            for picture in (image_of(answer), ImageOps.invert(original(index)))
        ]
        assert (cells[0] == cells[1]).mean() > 0.9
    others = {
        picture.name: answer[:200]
        for picture, answer in zip(shown, answers, strict=True)
        if answer != plain[picture.index]
    }
    assert others == {}


@pytest.mark.parametrize("ask", [chat_answer, responses_answer])
def test_data_urls(http, ask):
    picture = original(SHOWN[1], 128)
    texts = [form(base64_of(encoded(picture, "PNG"))) for form in URLS.values()]
    word = DIGIT_WORDS[digits.label(SHOWN[1])]
    answers = dict(zip(URLS, each(lambda url: ask(http, url), texts), strict=True))
    assert answers == dict.fromkeys(URLS, word)


def test_data_urls_of_pictures_to_edit(http):
    data = encoded(original(SHOWN[1]), "PNG")
    texts = [form(base64_of(data)) for form in URLS.values()]
    answers = dict(zip(URLS, each(lambda url: edited_in_chat(http, url), texts), strict=True))
    expected = image_of(edited(http, data)).tobytes()
    found = {name: _pixels(answer) == expected for name, answer in answers.items()}
    assert found == dict.fromkeys(URLS, True), answers


def _pixels(answer: str) -> bytes:
    try:
        return Image.open(io.BytesIO(base64.b64decode(answer))).convert("RGB").tobytes()
    except (OSError, ValueError):
        return b""


def test_the_other_ways(http, tiny_llm, shown):
    """`LLM.chat` and `/v1/responses`: some of each format."""
    some = shown[::7]
    conversations = [asked(url_of(picture.data)) for picture in some]
    sampling = tiny_llm.get_default_sampling_params()
    sampling.temperature, sampling.max_tokens = 0, 16
    outputs = tiny_llm.chat(conversations, sampling, use_tqdm=False)
    assert wrong(some, [output.outputs[0].text for output in outputs]) == {}
    answers = each(lambda picture: responses_answer(http, url_of(picture.data)), some)
    assert wrong(some, answers) == {}


def test_multi_modal_data(tiny_llm, tmp_path):
    """`LLM.generate` with pictures as Python has them: every mode that shows the digit."""
    index = SHOWN[2]
    image = original(index)
    grey = np.asarray(image.convert("L"))
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    path = tmp_path / "picture.tif"
    wide.save(path)
    sources: list[Any] = [image, np.asarray(image), path, path.read_bytes(), wide]
    sources += [image.convert(mode) for mode in ("1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr")]
    sources += [Image.fromarray(grey.astype(kind)) for kind in (np.int32, np.float32)]
    sources += [Image.open(path), Image.fromarray(grey.astype(np.float32) / 255)]
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    prompt = chat.render_chat([{"role": "user", "content": parts}])
    sampling = tiny_llm.get_default_sampling_params()
    sampling.temperature, sampling.max_tokens = 0, 16
    prompts = [{"prompt": prompt, "multi_modal_data": {"image": source}} for source in sources]
    outputs = tiny_llm.generate(prompts, sampling, use_tqdm=False)
    assert [output.outputs[0].text.strip() for output in outputs] == [
        DIGIT_WORDS[digits.label(index)]
    ] * len(sources)


def test_refused_alike(http, tiny_llm):
    good = encoded(original(SHOWN[0]), "PNG")
    word = DIGIT_WORDS[digits.label(SHOWN[0])]
    for name, (data, message) in REFUSED.items():
        content = asked(url_of(data))
        told = []
        for answer in (
            http.post("/v1/chat/completions", json={"messages": content} | ANSWER),
            http.post("/v1/chat/completions", json={"messages": content, "modalities": ["image"]}),
            http.post(
                "/v1/images/edits", data={"prompt": "invert the picture"},
                files={"image": ("a.png", io.BytesIO(data))},
            ),
            http.post(
                "/v1/images/edits", data={"prompt": "a seven"},
                files={"image": ("a.png", io.BytesIO(good)), "mask": ("b.png", io.BytesIO(data))},
            ),
        ):  # fmt: skip
            assert answer.status_code == 400, (name, answer.text)
            told.append(answer.json()["error"]["message"])
        with pytest.raises(ValueError, match=message) as error:
            dynin.generate(tiny_llm, [dynin.ImageToText(data, QUESTION)], use_tqdm=False)
        message = str(error.value).partition("): ")[2]  # behind which request it is
        assert message and all(message in one for one in told), (name, message, told)
    assert chat_answer(http, url_of(good)) == word
